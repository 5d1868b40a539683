"""`EMAUnit`: the unit of the paper around EM attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from ..problem import check_flag, check_floating
from .attention import EMAttention
from .unit_ways import attend_folded, choose_way, refusal_to_fold, run_as_one


class EMAUnit(nn.Module):
    """EMAU: relu(x + norm(conv2(relu(attention(conv1(x)))))), both convolutions 1x1.

    Li et al., ICCV 2019, figure 2. The first convolution has a bias and no activation, so that the features may be
    negative; the second has none, its norm does. With `grad_iters=0` the first convolution can get no gradient and
    is frozen, as in mmsegmentation.

    Args:
        channels: C of the input and output.
        num_bases, num_iters: as in `EMAttention`.
        norm_layer: called with `channels`, makes the norm after the second convolution.
        fold: apply the first convolution to the C x K bases of every iteration instead of the features, which is the
            same arithmetic in another order; in evaluation without a gradient, and with a batch norm, the whole unit
            is then one operator. None: where it was measured to be faster, on a CPU with at least 256 channels and 4
            channels for a base; True: always, or raise ValueError; False: never.
            Hooks of modules that are skipped would not run: a `conv1` or `attention` with hooks, of another class or
            with more than one head is not folded.
        **layer_options: any other option of `EMAttention` but channel_dim.

    Raises:
        ValueError, TypeError: an option does not fit.
    """

    def __init__(
        self,
        channels: int,
        num_bases: int = 64,
        num_iters: int = 3,
        *,
        norm_layer: Callable[[int], nn.Module] = nn.BatchNorm2d,
        fold: bool | None = None,
        **layer_options: Any,
    ) -> None:
        super().__init__()
        if layer_options.get("channel_dim", 1) != 1:
            raise ValueError(f"channel_dim is {layer_options['channel_dim']!r}: EMAUnit expects images [B, C, H, W]")
        if fold is not None and not isinstance(fold, bool):
            raise TypeError(f"fold is {fold!r} ({type(fold).__name__}): expected True, False or None")
        self.fold = fold
        self.attention = EMAttention(channels, num_bases, num_iters, **layer_options)
        self.conv1 = nn.Conv2d(channels, channels, 1)
        self.conv2 = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm = norm_layer(channels)
        for convolution in (self.conv1, self.conv2):
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out")
        nn.init.zeros_(self.conv1.get_parameter("bias"))
        if fold and self.attention.num_heads > 1:
            raise ValueError(f"fold is True: {refusal_to_fold(self)}")
        if self.attention.grad_iters == 0:
            self.conv1.requires_grad_(False)

    def forward(
        self,
        x: Tensor,
        weight: Tensor | None = None,
        num_iters: int | None = None,
        return_bases: bool = False,
        update_bases: bool | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The unit on `x` [B, C, H, W]; all other arguments, results and errors as in `EMAttention.forward`."""
        check_floating("x", x)
        check_flag("return_bases", return_bases)
        if x.dim() != 4 or x.shape[1] != self.attention.channels:
            raise ValueError(f"x has shape {list(x.shape)}: expected [B, {self.attention.channels}, H, W]")
        given = (weight, num_iters, update_bases)
        match choose_way(self, x):
            case "one":
                y, bases = self.attention.run(run_as_one(self), x, *given)
                return (y, bases) if return_bases else y
            case "folded":
                y, bases = self.attention.run(attend_folded(self), x, *given)
            case _:
                y, bases = self.attention(self.conv1(x), weight, num_iters, True, update_bases)
        y = F.relu(x + self.norm(self.conv2(F.relu(y))))
        return (y, bases) if return_bases else y
