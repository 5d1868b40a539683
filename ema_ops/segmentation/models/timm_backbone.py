"""Backbones of timm."""

from __future__ import annotations

from torch import Tensor, nn

from .blocks import Backbone, NormLayer


class TimmBackbone(Backbone):
    """The last two stages of a model of timm."""

    def __init__(self, name: str, output_stride: int, *, norm_layer: NormLayer = nn.BatchNorm2d) -> None:
        super().__init__()
        try:
            import timm
        except ModuleNotFoundError as error:
            if error.name != "timm":
                raise
            raise ImportError(f"backbone 'timm:{name}' needs timm: pip install timm") from error
        self.model = timm.create_model(name, features_only=True, output_stride=output_stride, out_indices=(-2, -1))
        self.channels = tuple(self.model.feature_info.channels())

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features of the model's last two stages."""
        before_last, last = self.model(images)
        return before_last, last
