"""A network that starts from the weights of another one, trained for other classes or with other options."""

from __future__ import annotations

import os

from .checkpoints import read_checkpoint
from .emanet import EMANet
from .files import load_fitting, unfitting


def start_from(network: EMANet, path: str | os.PathLike[str], *, skip_unfitting: bool = False) -> list[str]:
    """Load the weights in `path`, a file that `read_checkpoint` knows, into `network`, whose options stay.

    Args:
        network: any `EMANet`.
        path: the file.
        skip_unfitting: leave out what has no place in `network`, is missing in the file or has another shape there,
            such as a classifier of other classes or another number of bases; otherwise that is an error.

    Returns:
        What was left out, a phrase with some of the names for each way not to fit; nothing when all was loaded.

    Raises:
        FileNotFoundError, ValueError: no such file, it is no network, or it does not fit; then nothing has been loaded.
    """
    state, own = read_checkpoint(path).state, network.state_dict()
    complaints = unfitting(own, state)
    if not skip_unfitting:
        try:
            load_fitting(network, state, path)
        except ValueError as error:
            raise ValueError(f"{error}; model.skip_unfitting=true leaves these out") from None
        return []
    fitting = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    if not any(value.is_floating_point() for value in fitting.values()):
        raise ValueError(f"{path} has nothing that fits the network: {'; '.join(complaints)}")
    network.load_state_dict({**own, **fitting})
    return complaints
