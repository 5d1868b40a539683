"""Reading what `torch.save` wrote, without running anything that lies in it."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .python_objects import left_out

_SHOWN = 5


def read_file(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The mapping in the file `path`, its tensors on the CPU; "*.safetensors" files need that library.

    Raises:
        FileNotFoundError, IsADirectoryError: there is no file.
        ImportError: a "*.safetensors" file without the library.
        ValueError: it is not a whole file of tensors and plain values with names.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: expected a checkpoint file")
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: expected a checkpoint file")
    try:
        content = _load_safetensors(path) if path.suffix == ".safetensors" else _load(path)
    except (ImportError, MemoryError):
        raise
    # damaged files make the readers raise whatever their last step raised, also a seek to nowhere (EINVAL)
    except Exception as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise ValueError(f"{path} is not a checkpoint: {_reason(error)}") from error
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        raise ValueError(f"{path} holds {type(content).__name__}: expected a mapping with names")
    return dict(content)


def tensors_in(
    content: Mapping[str, Any], wrappers: tuple[str, ...], path: str | os.PathLike[str]
) -> dict[str, Tensor]:
    """The state dict in `content`, which may lie under one of the names `wrappers`; "module." in front is dropped.

    Raises:
        ValueError: there is something else than tensors.
    """
    for wrapper in wrappers:
        if isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    others = [key for key, value in content.items() if not isinstance(value, Tensor)]
    if others or not content:
        found = f"{names(others)} that are no tensors" if others else "nothing"
        raise ValueError(
            f"{path} holds {found}: expected a state dict, or one under {' or '.join(map(repr, wrappers))}"
        )
    if all(key.startswith("module.") for key in content):
        return {key.removeprefix("module."): value for key, value in content.items()}
    return dict(content)


def load_fitting(module: nn.Module, state: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Load `state` into `module`.

    Raises:
        ValueError: keys or shapes do not fit; some of them are named. Nothing has been loaded.
    """
    check_fitting(module.state_dict(), state, path, type(module).__name__)
    module.load_state_dict(dict(state))


def check_fitting(
    own: Mapping[str, Tensor], state: Mapping[str, Tensor], path: str | os.PathLike[str], what: str
) -> None:
    """Whether `state`, from the file `path`, has the keys and shapes of `own`, the state dict of `what`.

    Raises:
        ValueError: not so; some of the keys are named.
    """
    if complaints := unfitting(own, state):
        raise ValueError(f"{path} does not fit the {what}; {'; '.join(complaints)}")


def unfitting(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """How `state` differs from `own` in keys and shapes: a phrase for each way, with some of the keys."""
    # torch counts from zero where an old file has no counter
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unknown = [key for key in state if key not in own]
    shapes = [
        f"{key} {list(state[key].shape)} (expected {list(value.shape)})"
        for key, value in own.items()
        if key in state and state[key].shape != value.shape
    ]
    found = (("missing", missing), ("without a place", unknown), ("of another shape", shapes))
    return [f"{name}: {names(keys)}" for name, keys in found if keys]


def names(which: list[str]) -> str:
    """Some of `which`, and how many more there are."""
    more = len(which) - _SHOWN
    return ", ".join(which[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _load(path: Path) -> Any:
    with left_out():
        return torch.load(path, map_location="cpu", weights_only=True)


def _load_safetensors(path: Path) -> Any:
    try:
        from safetensors.torch import load_file
    except ModuleNotFoundError as error:
        raise ImportError(f"{path} needs safetensors: pip install safetensors") from error
    return load_file(path)


def _reason(error: Exception) -> str:
    """One line; the object that a pickle asks for is what counts in torch's many."""
    asked_for = re.search(r"GLOBAL (\S+)", str(error))
    if asked_for:
        return f"it holds a Python object ({asked_for[1]}), expected tensors and plain values only"
    # torch's own words advise to read it in an unsafe way
    if "weights_only" in str(error):
        return "it is neither a whole zip nor pickle file of tensors"
    return f"it cannot be read ({str(error).partition(chr(10))[0] or type(error).__name__})"
