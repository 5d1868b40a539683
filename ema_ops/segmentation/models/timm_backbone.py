"""Backbones of timm, which itself needs torchvision of the same build as torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from .blocks import Backbone, NormLayer
from .files import check_fitting, load_fitting

STRIDES = (4, 8, 16, 32)
"""Output strides that are tried to say which ones a model offers."""


class TimmBackbone(Backbone):
    """The last two stages of the model `name` of timm, dilated where timm can.

    Made without pretrained weights; `load` takes them from a file. `norm_layer` makes its batch norms; norms of other
    kinds stay.

    Raises:
        ImportError: timm cannot be imported.
        ValueError: timm has no such model, or it does not offer the output stride, or is not for images of any size.
    """

    def __init__(self, name: str, output_stride: int, *, norm_layer: NormLayer = nn.BatchNorm2d) -> None:
        super().__init__()
        timm = _import_timm(name)
        if not timm.is_model(name):
            raise ValueError(f"backbone is 'timm:{name}': expected a model of timm.list_models()")
        self.name = name
        self.output_stride = output_stride
        self.model = _create(timm, name, output_stride)
        if self.model.feature_info.reduction()[-1] != output_stride:
            raise ValueError(f"output_stride is {output_stride}: timm:{name} offers {_offered(timm, name)}")
        before_last, last = self.model.feature_info.channels()
        self.channels = (before_last, last)
        self._try()
        if norm_layer is not nn.BatchNorm2d:
            _replace_batch_norms(self.model, norm_layer)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features of the last two stages."""
        before_last, last = self.model(images)
        return before_last, last

    def load(self, state: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
        """Load `state`, that of the whole model in timm's own keys; its classifier is left out.

        Raises:
            ValueError: keys or shapes do not fit; `path` and some of them are named. Nothing has been loaded.
        """
        timm = _import_timm(self.name)
        whole = timm.create_model(self.name)
        classifier = whole.pretrained_cfg.get("classifier") or ()
        prefixes = tuple(f"{part}." for part in ([classifier] if isinstance(classifier, str) else classifier))
        own, given = (
            {key: value for key, value in each.items() if not key.startswith(prefixes)}
            for each in (whole.state_dict(), state)
        )
        check_fitting(own, given, path, f"model {self.name} of timm")
        # timm leaves out what lies behind the last stage and renames the rest
        weights = {"state_dict": dict(state)}
        loaded = _create(timm, self.name, self.output_stride, pretrained=True, pretrained_cfg_overlay=weights)
        load_fitting(self.model, loaded.state_dict(), path)

    def _try(self) -> None:
        """Run the model once: some take images of certain sizes only, or have their channels last."""
        height, width = 65, 97
        self.model.eval()
        try:
            with torch.no_grad():
                shape = list(self.model(torch.zeros(1, 3, height, width))[-1].shape)
        # the models refuse in different ways
        except Exception as error:
            raise ValueError(f"backbone is 'timm:{self.name}': it takes no images of any size ({error})") from error
        self.model.train()
        # odd sizes are rounded up by padded convolutions and down by others
        rounded = [size // self.output_stride + up for size in (height, width) for up in (0, 1)]
        if len(shape) != 4 or shape[1] != self.channels[1] or not set(shape[2:]) <= set(rounded):
            raise ValueError(
                f"backbone is 'timm:{self.name}': features of an image {height} x {width} have shape {shape}, "
                f"expected [1, {self.channels[1]}, {height} / {self.output_stride}, {width} / {self.output_stride}]"
            )


def _import_timm(name: str) -> ModuleType:
    try:
        import timm
    except ModuleNotFoundError as error:
        raise ImportError(f"backbone 'timm:{name}' needs timm ({error}): pip install timm") from error
    # a torchvision of another build of torch raises RuntimeError
    except (ImportError, RuntimeError) as error:
        raise ImportError(
            f"backbone 'timm:{name}' needs timm, which cannot be imported here ({error}): "
            f"pip install timm, and the torchvision made for torch {torch.__version__}"
        ) from error
    return timm


def _create(timm: ModuleType, name: str, output_stride: int, **options: Any) -> Any:
    """The model at `output_stride`, or at its own stride where it does not offer that one."""
    options |= {"features_only": True, "out_indices": (-2, -1)}
    try:
        return timm.create_model(name, output_stride=output_stride, **options)
    # no such option, or not this stride
    except (TypeError, AssertionError):
        pass
    try:
        return timm.create_model(name, **options)
    except (TypeError, AssertionError, RuntimeError) as error:
        raise ValueError(
            f"backbone is 'timm:{name}': timm does not give the features of its stages ({error})"
        ) from error


def _offered(timm: ModuleType, name: str) -> str:
    with torch.device("meta"):
        reached = {_create(timm, name, stride).feature_info.reduction()[-1] for stride in STRIDES}
    return ", ".join(map(str, sorted(reached)))


def _replace_batch_norms(model: nn.Module, norm_layer: NormLayer) -> None:
    """Put a norm of `norm_layer` in the place of every batch norm, with its options, state and activation."""
    for parent in list(model.modules()):
        for name, old in list(parent.named_children()):
            if not isinstance(old, nn.BatchNorm2d):
                continue
            new = norm_layer(old.num_features)
            for option in ("eps", "momentum"):
                if hasattr(new, option):
                    setattr(new, option, getattr(old, option))
            new.load_state_dict(old.state_dict(), strict=False)
            # some batch norms of timm have the activation in them
            if list(old.children()):
                for part, module in old.named_children():
                    new.add_module(part, module)
                new.register_forward_hook(_activate)
            setattr(parent, name, new)


def _activate(norm: nn.Module, _: Any, output: Tensor) -> Tensor:
    return norm.get_submodule("act")(norm.get_submodule("drop")(output))
