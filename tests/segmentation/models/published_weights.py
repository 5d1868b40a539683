"""Files with the shapes of published weights alone."""

import torch

from ema_ops.interop import convert_state_dict
from ema_ops.segmentation.models import EMANet


def shapes_of(target, **options):
    """The state dict of an EMANet in the keys of `target`, ones that take no memory and no room in a file."""
    with torch.device("meta"):
        state = EMANet(head=target, **options).state_dict()
    state = {key: torch.ones((), dtype=value.dtype).expand(value.shape) for key, value in state.items()}
    return convert_state_dict(state, target=target, scope="network")
