"""States of other implementations to ours and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

IMPLEMENTATIONS = ("official", "mmsegmentation")
SCOPES = ("unit", "network")
_BASES = ("mu", "ema_module.bases", "attention.bases")
# where a whole checkpoint file keeps the weights
_WRAPPERS = {"official": "net", "mmsegmentation": "state_dict"}


class _Place(NamedTuple):
    """One prefix (or whole key) in every implementation; None where it has no such part."""

    official: str | None
    mmsegmentation: str | None
    ours: str


_UNIT = (
    _Place("mu", "ema_module.bases", "attention.bases"),
    _Place("conv1.", "ema_mid_conv.conv.", "conv1."),
    _Place("conv2.0.", "ema_out_conv.conv.", "conv2."),
    _Place("conv2.1.", "ema_out_conv.bn.", "norm."),
)
_NETWORK = (
    # the last norm of the stem stands outside it in the official network, so it comes before the stem
    _Place("extractor.1.", "backbone.stem.7.", "backbone.stem.7."),
    _Place("extractor.0.", "backbone.stem.", "backbone.stem."),
    *(_Place(f"extractor.{i + 3}.", f"backbone.layer{i}.", f"backbone.layer{i}.") for i in (1, 2, 3, 4)),
    _Place("fc0.conv.", "decode_head.ema_in_conv.conv.", "reduce.conv."),
    _Place("fc0.bn.", "decode_head.ema_in_conv.bn.", "reduce.norm."),
    *(_Place(f"emau.{p.official}", f"decode_head.{p.mmsegmentation}", f"unit.{p.ours}") for p in _UNIT),
    _Place("fc1.0.conv.", "decode_head.bottleneck.conv.", "bottleneck.conv."),
    _Place("fc1.0.bn.", "decode_head.bottleneck.bn.", "bottleneck.norm."),
    _Place(None, "decode_head.conv_cat.conv.", "concat.conv."),
    _Place(None, "decode_head.conv_cat.bn.", "concat.norm."),
    _Place("fc2.", "decode_head.conv_seg.", "classifier."),
    _Place(None, "auxiliary_head.convs.0.conv.", "auxiliary.conv."),
    _Place(None, "auxiliary_head.convs.0.bn.", "auxiliary.norm."),
    _Place(None, "auxiliary_head.conv_seg.", "auxiliary_classifier."),
)


def convert_state_dict(
    state: Mapping[str, Any], *, source: str | None = None, target: str | None = None, scope: str = "unit"
) -> dict[str, Tensor]:
    """The state dict `state` with its keys renamed; the tensors are the same objects.

    Args:
        state: a state dict. With scope="network" also a whole checkpoint that holds one (official
            `{"net": .., "step": ..}`, mmsegmentation `{"state_dict": .., "meta": ..}`); a `module.` in front of
            every key is dropped.
        source: implementation that `state` comes from, "official" or "mmsegmentation"; the result is ours.
        target: implementation that the result is for; `state` is ours. Exactly one of the two is given.
        scope: "unit" for `EMAUnit`, "network" for a whole segmentation network.

    Raises:
        ValueError: not exactly one of source and target, an unknown name, keys that have no place (all are named),
            or bases with several heads for an implementation that knows one.
        TypeError: `state` is not a mapping from names to tensors.
    """
    if (source is None) == (target is None):
        raise ValueError(f"source is {source!r} and target is {target!r}: expected exactly one of them")
    other = source if target is None else target
    if other not in IMPLEMENTATIONS:
        name = "source" if target is None else "target"
        raise ValueError(f"{name} is {other!r}: expected one of {', '.join(map(repr, IMPLEMENTATIONS))}")
    if scope not in SCOPES:
        raise ValueError(f"scope is {scope!r}: expected one of {', '.join(map(repr, SCOPES))}")

    state = _unwrap(state, _WRAPPERS[other] if source is not None and scope == "network" else None)
    places = _UNIT if scope == "unit" else _NETWORK
    pairs = [(getattr(p, other), p.ours) for p in places if getattr(p, other) is not None]
    if target is not None:
        pairs = [(ours, theirs) for theirs, ours in pairs]

    converted, unplaced = {}, []
    for key, value in state.items():
        new_key = _rename(key, pairs)
        if new_key is None:
            unplaced.append(key)
            continue
        if new_key.endswith(_BASES) and (value.dim() != 3 or value.shape[0] != 1):
            raise ValueError(f"{key} has shape {list(value.shape)}: {other} knows one head, expected [1, C, K]")
        converted[new_key] = value
    if unplaced:
        raise ValueError(
            f"keys without a place ({'from' if target is None else 'in'} {other}, scope {scope!r}): "
            + ", ".join(sorted(unplaced))
        )
    return converted


def _unwrap(state: Mapping[str, Any], wrapper: str | None) -> Mapping[str, Tensor]:
    if not isinstance(state, Mapping):
        raise TypeError(f"state is {type(state).__name__}: expected a mapping from names to tensors")
    if wrapper is not None and isinstance(state.get(wrapper), Mapping):
        state = state[wrapper]
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise TypeError(f"state has {key!r}: {type(value).__name__}, expected names and tensors only")
    if state and all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return state


def _rename(key: str, pairs: list[tuple[str, str]]) -> str | None:
    for old, new in pairs:
        if key == old or (old.endswith(".") and key.startswith(old)):
            return new + key[len(old) :]
    return None
