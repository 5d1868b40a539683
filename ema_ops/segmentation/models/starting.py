"""A network that starts from the weights of another one, trained for other classes or with other options."""

from __future__ import annotations

import os
from collections.abc import Sequence

from .checkpoints import read_checkpoint
from .emanet import EMANet
from .files import load_fitting, unfitting


def start_from(
    network: EMANet,
    path: str | os.PathLike[str],
    *,
    skip_unfitting: bool = False,
    classes: Sequence[str] | None = None,
) -> list[str]:
    """Load the weights in `path`, a file that `read_checkpoint` knows, into `network`, whose options stay.

    Args:
        network: any `EMANet`.
        path: the file.
        skip_unfitting: leave out what has no place in `network`, is missing in the file or has another shape there,
            such as a classifier of other classes or another number of bases; otherwise that is an error.
        classes: names of the classes of `network`.

    Returns:
        What the user may want to know, in one line each: what was left out, and the first class of another name.

    Raises:
        FileNotFoundError, ValueError: no such file, it is no network, or it does not fit; then nothing has been loaded.
    """
    checkpoint = read_checkpoint(path)
    state, own = checkpoint.state, network.state_dict()
    notes = _other_names(checkpoint.classes, classes, path)
    complaints = unfitting(own, state)
    if not skip_unfitting:
        try:
            load_fitting(network, state, path)
        except ValueError as error:
            raise ValueError(f"{error}; model.skip_unfitting=true leaves these out") from None
        return notes
    fitting = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    if not any(value.is_floating_point() for value in fitting.values()):
        raise ValueError(f"{path} has nothing that fits the network: {'; '.join(complaints)}")
    network.load_state_dict({**own, **fitting})
    return [f"not loaded from {path}; {'; '.join(complaints)}", *notes] if complaints else notes


def _other_names(there: Sequence[str] | None, here: Sequence[str] | None, path: str | os.PathLike[str]) -> list[str]:
    """A line when as many classes have other names: the classifier fits, and may mean something else."""
    if there is None or here is None or len(there) != len(here):
        return []
    differing = [label for label, (old, new) in enumerate(zip(there, here, strict=True)) if old != new]
    return [f"class {label} is {there[label]!r} in {path} and {here[label]!r} here" for label in differing[:1]]
