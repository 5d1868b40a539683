"""Ratios between measurements of ours: memory orders, backends, and time per position at constant work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from .results import CASE, Row, latest, number

Key = tuple[str, ...]


def milliseconds(row: Row) -> float | None:
    """The median of the graph's replays, or without a graph that of the calls; None if nothing was measured."""
    text = row["graph_p50_ms"] or row["p50_ms"]
    return float(text) if row["status"] == "ok" and text else None


def is_ours(row: Row) -> bool:
    """Whether the row is about a backend of this package."""
    return row["peer"].startswith("ema_ops/")


def order_ratios(rows: Iterable[Row]) -> Iterator[tuple[Row, float]]:
    """Rows of ours about contiguous images, each with its time over that of the same in channels-last order."""
    return _against(filter(is_ours, rows), "memory_order", "contiguous", "channels_last")


def peer_ratios(rows: Iterable[Row], peer: str, other: str) -> Iterator[tuple[Row, float]]:
    """Rows of `peer`, each with its time over that of `other` in the same case."""
    return _against(rows, "peer", peer, other)


def position_ratios(rows: Iterable[Row]) -> Iterator[tuple[Row, float]]:
    """Rows of ours with different N but the same B * N, each with its time per position over that of the smallest N."""
    groups: dict[Key, dict[int, Row]] = {}
    for row in filter(is_ours, latest(rows)):
        if milliseconds(row) is not None:
            work = str(int(row["batch"]) * int(row["positions"]))
            key = (*_key(row, "batch", "height", "width"), work)
            groups.setdefault(key, {})[int(row["positions"])] = row
    for group in groups.values():
        first, *others = (group[positions] for positions in sorted(group))
        for row in others:
            yield row, _ratio(row, first)


def lines(rows: list[Row]) -> list[str]:
    """All of them as text."""
    found = [("over channels_last", row, ratio) for row, ratio in order_ratios(rows)]
    found += [("per position over the smallest N", row, ratio) for row, ratio in position_ratios(rows)]
    return [f"{number(ratio)}x {what}: {describe(row)}" for what, row, ratio in found]


def describe(row: Row) -> str:
    """The case of a row in a few words."""
    order = row["memory_order"]
    return f"{row['peer']} {row['dtype']} {order} B={row['batch']} {row['height']}x{row['width']} {row['mode']}"


def _against(rows: Iterable[Row], column: str, value: str, other: str) -> Iterator[tuple[Row, float]]:
    """Measured rows with `value` in a column that otherwise are like one with `other`, and the ratio of their times."""
    measured = [row for row in latest(rows) if milliseconds(row) is not None]
    others = {_key(row, column): row for row in measured if row[column] == other}
    for row in measured:
        if row[column] == value and _key(row, column) in others:
            yield row, _ratio(row, others[_key(row, column)])


def _ratio(row: Row, other: Row) -> float:
    # a replay is compared with a replay only
    column = "graph_p50_ms" if row["graph_p50_ms"] and other["graph_p50_ms"] else "p50_ms"
    return float(row[column]) / float(other[column])


def _key(row: Row, *without: str) -> Key:
    return tuple(row[column] for column in (*CASE, "peer") if column not in without)
