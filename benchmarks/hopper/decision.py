"""Which parts of EMA_OPS_HOPPER were right, where each was faster, and the lines of csrc/hopper/defaults.h that follow.

A part is judged by every pair of measurements that differ in it alone, but for those of features of 8 bits. It is
proposed from the fewest positions of all images together on from which it was faster in every case, and only if no test
of it failed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ema_ops.backends.cuda.hopper import HOPPER_PARTS

from ..records import Outcome
from ..results import Row, latest, number

CORE = "ema_ops/cuda"
FASTER = 0.98  # a time below this share of the other is no noise
MODES = ("forward", "backward", "unit")
# line of defaults.h -> part and modes that it turns on
DEFAULTS = {
    "FORWARD_TILES": ("tiles", ("forward",)),
    "BACKWARD_TILES": ("tiles", ("backward",)),
    "UNIT_TILES": ("tiles", ("unit",)),
    "OVERLAP": ("overlap", MODES),
    "LOOP": ("loop", ("forward",)),
}
Case = tuple[str, str, int, int, str]  # mode, memory order, batch, height, dtype
Times = dict[Case, dict[frozenset[str], float]]


def measured(rows: Iterable[Row]) -> Times:
    """Microseconds of a replay for every case by the parts that were on; of the unit the faster of folded and not."""
    found: Times = {}
    for row in latest(rows):
        match = re.fullmatch(rf"{CORE}(?::(?P<parts>[a-z,]+))?(?: folded)?", row["peer"])
        if match is None or row["status"] != "ok" or not row["graph_p50_ms"] or row["mode"] not in MODES:
            continue
        case = (row["mode"], row["memory_order"], int(row["batch"]), int(row["height"]), row["dtype"])
        parts = frozenset(filter(None, (match["parts"] or "").split(",")))
        times = found.setdefault(case, {})
        times[parts] = min(1e3 * float(row["graph_p50_ms"]), times.get(parts, float("inf")))
    return found


def gains(times: Times, part: str, modes: Sequence[str]) -> dict[Case, float]:
    """By case, the worst ratio of the time with `part` to that without, all else the same."""
    found: dict[Case, float] = {}
    for case, by_parts in times.items():
        ratios = [by_parts[on] / by_parts[on - {part}] for on in by_parts if part in on and on - {part} in by_parts]
        if ratios and case[0] in modes and case[4] != "float8_e4m3fn":
            found[case] = max(ratios)
    return found


def faster_from(ratios: Mapping[Case, float]) -> int | None:
    """The fewest positions from which on every measured case gains; None if the largest does not."""
    first = None
    for case in sorted(ratios, key=_positions, reverse=True):
        same = [ratio for other, ratio in ratios.items() if _positions(other) == _positions(case)]
        if max(same) > FASTER:
            break
        first = _positions(case)
    return first


def verdict(part: str, tests: Mapping[str, Sequence[Outcome]]) -> str:
    """What the tests with `part` on said, in words; "right" begins it if there are some and all were."""
    told = [o for name, each in tests.items() if name.startswith("hopper") for o in each if _has(o.test, part)]
    bad = [o for o in told if o.outcome == "failed"]
    stopped = [o for o in told if o.outcome == "never ended"]
    passed = sum(o.outcome == "passed" for o in told)
    if bad:
        return f"WRONG: {len(bad)} of {len(told)} tests, first {bad[0].test}"
    if stopped:
        return f"unclear: {len(stopped)} of {len(told)} tests never ended, first {stopped[0].test}"
    return f"right: {passed} tests" if passed else "not tested"


def write(rows: Sequence[Row], tests: Mapping[str, Sequence[Outcome]], path: Path) -> str:
    """Write the table to `path`; returns the text."""
    times = measured(rows)
    lines = ["| part | right | faster in | worst | lines of csrc/hopper/defaults.h |", "|---" * 5 + "|"]
    for part in HOPPER_PARTS:
        ratios = gains(times, part, MODES)
        won = sum(ratio < FASTER for ratio in ratios.values())
        worst = max(ratios, key=lambda case: ratios[case], default=None)
        told = "-" if worst is None else f"{number(ratios[worst])}x: {_told(worst)}"
        right = verdict(part, tests)
        changes = [_line(name, times, right) for name, (of, _) in DEFAULTS.items() if of == part]
        lines.append(f"| {part} | {right} | {won} of {len(ratios)} cases | {told} | {'; '.join(changes)} |")
    combinations = sorted({on for by_parts in times.values() for on in by_parts}, key=lambda on: (len(on), sorted(on)))
    names = [",".join(sorted(on)) or "off" for on in combinations]
    lines += ["", "Microseconds (replay of a graph), with time over that of the portable kernels:", ""]
    lines += [f"| case | {' | '.join(names)} | fastest |", "|---" * (2 + len(names)) + "|"]
    for case in sorted(times, key=lambda case: (MODES.index(case[0]), case[1], case[4], _positions(case))):
        cells = [_cell(times[case], on) for on in combinations]
        best = min(times[case], key=lambda on: times[case][on])
        lines.append(f"| {_told(case)} | {' | '.join(cells)} | {','.join(sorted(best)) or 'off'} |")
    text = "\n".join(lines) + "\n"
    path.write_text(text)
    return text


def _line(name: str, times: Times, right: str) -> str:
    part, modes = DEFAULTS[name]
    first = faster_from(gains(times, part, modes))
    return f"`{name} = from({first})`" if first is not None and right.startswith("right") else f"`{name} = NEVER`"


def _has(test: str, part: str) -> bool:
    """Whether the parameter of test_hopper.py names `part`; with EMA_OPS_HOPPER=1 tests have none and count for two."""
    words = re.findall(r"[a-z]+", test.partition("[")[2])
    if "test_hopper.py" in test:
        return part in words
    return part in ("tiles", "overlap")


def _positions(case: Case) -> int:
    return case[2] * case[3] ** 2


def _told(case: Case) -> str:
    mode, order, batch, side, dtype = case
    return f"{mode} {dtype} {order} B={batch} {side}x{side}"


def _cell(times: Mapping[frozenset[str], float], on: frozenset[str]) -> str:
    if on not in times:
        return "-"
    over = f" ({number(times[on] / times[frozenset()])}x)" if on and frozenset() in times else ""
    return f"{number(times[on])}{over}"
