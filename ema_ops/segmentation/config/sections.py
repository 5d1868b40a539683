"""The sections of a config and what each setting may be."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from ...layers import PRESETS, EMAttention
from ..data.augmentation import Augmentation
from ..data.kinds import check_options
from ..evaluation import Inference

Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
# a single number is a square
Size = Annotated[tuple[Count, Count], BeforeValidator(lambda value: (value, value) if _is_scalar(value) else value)]
Precision = Literal["float32", "bfloat16", "float16"]

# of the first weights, not of the network
_START = ("backbone_weights", "weights", "skip_unfitting")
_LAYER_OPTIONS = sorted(
    set(inspect.signature(EMAttention).parameters)
    - {"channels", "num_bases", "num_iters", "channel_dim", "average_group"}
)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class ModelConfig(_Section):
    """The arguments of `EMANet` but the number of classes, which is that of the data; None leaves them to `EMANet`.

    `preset` names an entry of `ema_ops.PRESETS`, `layer` has any other options of `EMAttention` and wins over it.
    The network starts from random weights, or from a file: `backbone_weights`, ImageNet weights of the backbone alone,
    or `weights`, a whole network of ours, of the official code or of mmsegmentation. `skip_unfitting` leaves out what
    does not fit there: a classifier of other classes, another number of bases.
    """

    backbone: str = "resnet101"
    output_stride: Literal[4, 8, 16] = 8
    num_bases: Count = 64
    num_iters: Count = 3
    head: Literal["official", "mmsegmentation"] = "official"
    channels: Count = 512
    bottleneck_channels: Count | None = None
    auxiliary: bool | None = None
    align_corners: bool | None = None
    multi_grid: list[Count] | None = None
    stem_channels: Count | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    preset: Literal["official", "mmsegmentation"] | None = None
    layer: dict[str, Any] = {}
    backbone_weights: Path | None = None
    weights: Path | None = None
    skip_unfitting: bool = False

    @model_validator(mode="after")
    def _check_layer(self) -> ModelConfig:
        for name in self.layer:
            if name not in _LAYER_OPTIONS:
                raise ValueError(f"layer.{name} is not a setting: expected one of {', '.join(_LAYER_OPTIONS)}")
        return self

    @model_validator(mode="after")
    def _check_start(self) -> ModelConfig:
        if self.weights is not None and self.backbone_weights is not None:
            raise ValueError(f"weights is '{self.weights}' with backbone_weights too: expected one of them")
        if self.skip_unfitting and self.weights is None:
            raise ValueError("skip_unfitting is True without weights: expected weights, the file to start from")
        return self

    @property
    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of `EMANet`, without the number of classes."""
        own = self.model_dump(exclude={"preset", "layer", *_START}, exclude_none=True)
        return {**own, **(PRESETS[self.preset] if self.preset else {}), **self.layer}


class DataConfig(_Section):
    """The data set as `open_dataset(kind, root, split, **options)` opens it, and the augmentation.

    `crop` is [height, width] or one number, `scales` the smallest and the largest random scale; `scale_step` takes only
    those that are so far apart, None all between. `max_class_share` and `distort_colours` are those of `Augmentation`.
    Not more of the `workers` are started than there are cores.
    """

    kind: str
    root: Path
    train_split: str = "train"
    val_split: str = "val"
    options: dict[str, Any] = {}
    crop: Size = (513, 513)
    scales: tuple[Positive, Positive] = (0.5, 2.0)
    scale_step: Positive | None = None
    max_class_share: float | None = None
    distort_colours: bool = False
    flip: bool = True
    workers: Annotated[int, Field(ge=0)] = 4

    @model_validator(mode="after")
    def _check_data(self) -> DataConfig:
        check_options(self.kind, self.options)
        Augmentation(self.crop, self.scales, self.flip, self.scale_step, self.max_class_share, self.distort_colours)
        return self


class OptimizerConfig(_Section):
    """SGD with the paper's parameter groups and the poly schedule; AdamW for short runs from scratch.

    The learning rate of step s (from 1) is min_lr + (lr - min_lr) * (1 - s' / steps) ^ power, s' being s rounded down
    to a multiple of `schedule_every`, and in the first `warmup` steps that times s / warmup. `decay` says which
    parameters `weight_decay` is for: "convolutions" (their weights, as in the paper's code) or "all" (as in
    mmsegmentation). AdamW has no use for `momentum`. `norm_momentum` is that of every batch norm.
    """

    name: Literal["sgd", "adamw"] = "sgd"
    lr: Positive = 9e-3
    warmup: Annotated[int, Field(ge=0)] = 0
    momentum: Fraction = 0.9
    weight_decay: NonNegative = 1e-4
    decay: Literal["convolutions", "all"] = "convolutions"
    bias_lr_factor: NonNegative = 2.0
    power: NonNegative = 0.9
    min_lr: NonNegative = 0.0
    schedule_every: Count = 10
    norm_momentum: Fraction = 3e-4


class TrainingConfig(_Section):
    """The loop. `batch` counts the pictures of one step over all processes and all `accumulate` parts.

    Intervals are in steps; 0 switches validation off. `device` None takes CUDA where there is one, `threads` None
    leaves torch's choice.
    """

    steps: Count = 30000
    batch: Count = 16
    accumulate: Count = 1
    precision: Precision = "float32"
    channels_last: bool = False
    compile: bool = False
    seed: Annotated[int, Field(ge=0)] = 0
    auxiliary_weight: NonNegative = 0.4
    validate_every: Annotated[int, Field(ge=0)] = 1000
    save_every: Count = 500
    log_every: Count = 10
    pictures: Annotated[int, Field(ge=0)] = 4
    sync_norm: bool = True
    device: str | None = None
    threads: Count | None = None


class EvaluationConfig(_Section):
    """How validation during training is done; the arguments of `evaluate`."""

    scales: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1.0,)
    flip: bool = False
    mode: Literal["whole", "slide"] = "whole"
    window: Size | None = None
    stride: Size | None = None
    batch: Count = 1

    @model_validator(mode="after")
    def _check_windows(self) -> EvaluationConfig:
        Inference(**self.model_dump(exclude={"batch"}))
        return self


class Published(_Section):
    """What others report for this setting: mIoU in percent, and where it says so. Nothing in a run reads it."""

    miou: dict[str, float]
    source: str
    status: str


class Config(_Section):
    """Everything that decides a training run. `out` is the folder for all that it writes."""

    out: Path = Path("runs/train")
    model: ModelConfig = ModelConfig()
    data: DataConfig
    optimizer: OptimizerConfig = OptimizerConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    published: Published | None = None

    @model_validator(mode="after")
    def _check_batch(self) -> Config:
        if self.training.batch % self.training.accumulate:
            raise ValueError(
                f"training.batch is {self.training.batch}: expected a multiple of training.accumulate = "
                f"{self.training.accumulate}"
            )
        if self.optimizer.min_lr > self.optimizer.lr:
            raise ValueError(f"optimizer.min_lr is {self.optimizer.min_lr}: expected at most lr = {self.optimizer.lr}")
        return self

    def plain(self) -> dict[str, Any]:
        """The config in words and numbers only, as it goes into a checkpoint."""
        return self.model_dump(mode="json")


def _is_scalar(value: Any) -> bool:
    return not isinstance(value, (list, tuple, dict))
