"""The microbenchmark behind `ema-ops bench`: check, then measure, every peer in every case and mode."""

from __future__ import annotations

import gc
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from tqdm import tqdm

from ema_ops.out_of_memory import is_out_of_memory

from . import units
from .case import Case, Inputs, draw
from .environment import environment, now
from .floor import Rates, floor, rates_of
from .formulas import Formula
from .measure import time_graph, time_workload
from .memory import extra_memory, limited_to_free_memory
from .options import Options
from .peers import RIVALS, Function, Peer, ours
from .plots import plot
from .ratios import lines as ratio_lines
from .results import COLUMNS, Row, add_ratios, append, number, read, table
from .units import UNIT, UNIT_RIVALS
from .verify import Truth, Verdict, find_truth, judge
from .workload import Workload, workload

FAILURES = ("wrong result", "failed")


@dataclass
class Bench:
    """One run over one device; what is computed once and used by many measurements is kept here."""

    options: Options
    deadline: float
    common: Row
    rates: dict[str, Rates] = field(default_factory=dict)

    def measure_case(self, case: Case, peers: dict[str, list[Peer]], progress: tqdm, rows: list[Row]) -> None:
        """Append a row to `rows` for every mode of one case and for the `peers` of each, as soon as it is measured."""
        if self._is_late():
            progress.update(sum(map(len, peers.values())))
            rows += [row for mode, of_mode in peers.items() for row in self._not_run(case, mode, of_mode)]
            return
        if case.dtype not in self.rates:
            self.rates[case.dtype] = rates_of(self.options.device, case.dtype)
        subject = _Subject(case, self.options)
        for peer in dict.fromkeys(peer for of_mode in peers.values() for peer in of_mode):
            for mode, of_mode in peers.items():
                if peer not in of_mode:
                    continue
                progress.set_description(f"{case} {mode} {peer.name}")
                rows.append(self.measure(subject, mode, peer))
                progress.update()

    def measure(self, subject: _Subject, mode: str, peer: Peer) -> Row:
        """One row: measured, or saying in `status` and `note` why not."""
        case, row = subject.case, self._row(subject.case, mode, peer)
        if self._is_late():
            return self._late(row)
        try:
            with limited_to_free_memory(self.options.device):
                if case.element_sizes[0] == 1 and (mode != "forward" or peer.name in RIVALS):
                    return row | {"status": "not applicable", "note": "takes no features of 8 bits"}
                reason = peer.refuses(case, subject.inputs, mode)
                if reason is not None:
                    return row | {"status": "not applicable" if peer.name in RIVALS else "not usable", "note": reason}
                return row | self._measured(subject, mode, peer)
        except Exception as error:
            # a benchmark goes on with the next peer; the row, the printed trace and the exit status tell
            if is_out_of_memory(error):
                return row | {"status": "out of memory", "note": _first_line(error)}
            _print_trace(error)
            return row | {"status": "failed", "note": f"{type(error).__name__}: {_first_line(error)}"}
        finally:
            self._release()

    def _measured(self, subject: _Subject, mode: str, peer: Peer) -> Row:
        case, seconds = subject.case, self.options.seconds
        function = subject.function(peer)
        work = workload(peer, function, subject.inputs, mode)
        y, grad_x = work.run()
        verdict = judge(y, grad_x, subject.truth(peer.formula))
        del y, grad_x
        row = _checked(verdict, case)
        if verdict.wrong is not None:
            return row | {"status": "wrong result", "note": verdict.wrong}
        row["status"] = "ok"
        row["kernel"] = peer.kernel(work.run)
        row["extra_mib"] = number(extra_memory(work, self.options.device) / 2**20)
        timing = time_workload(work, self.options.device, seconds)
        row |= {"p20_ms": number(timing.p20), "p50_ms": number(timing.p50), "p80_ms": number(timing.p80)}
        row["repeats"] = str(timing.repeats)
        if mode != "forward" and not peer.has_gradient:
            row["note"] = _joined(row["note"], "no gradient to x: this is its forward pass")
        if self.options.device.type == "cuda":
            row |= self._replayed(work, row["note"])
        if peer.formula.strict:
            row |= self._over_floor(case, mode if peer.has_gradient else "forward", row)
        return row

    def _replayed(self, work: Workload, note: str) -> Row:
        try:
            timing = time_graph(work, self.options.device, self.options.seconds)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            return {"note": _joined(note, f"no CUDA graph: {_first_line(error)}")}
        names = ("graph_p20_ms", "graph_p50_ms", "graph_p80_ms")
        return dict(zip(names, map(number, (timing.p20, timing.p50, timing.p80)), strict=True))

    def _over_floor(self, case: Case, mode: str, row: Row) -> Row:
        rates = self.rates[case.dtype]
        least = floor(case, mode, rates)
        result = {"floor_ms": number(1e3 * least.seconds), "floor_bound": least.bound, "floor_source": _told(rates)}
        for time_column, column in (("p50_ms", "over_floor"), ("graph_p50_ms", "graph_over_floor")):
            if row.get(time_column):
                result[column] = number(float(row[time_column]) / (1e3 * least.seconds))
        return result

    def _row(self, case: Case, mode: str, peer: Peer) -> Row:
        return {
            **dict.fromkeys(COLUMNS, ""),
            **self.common,
            "utc": now(),
            "dtype": case.dtype,
            "memory_order": case.memory_order,
            "batch": str(case.batch),
            "channels": str(case.channels),
            "height": str(case.height),
            "width": str(case.width),
            "num_bases": str(case.num_bases),
            "num_iters": str(case.num_iters),
            "positions": str(case.positions),
            "mode": mode,
            "peer": peer.name,
        }

    def _is_late(self) -> bool:
        return time.monotonic() > self.deadline

    def _late(self, row: Row) -> Row:
        return row | {"status": "not run", "note": f"the time limit of {self.options.time_limit:g} s was reached"}

    def _not_run(self, case: Case, mode: str, peers: Sequence[Peer]) -> list[Row]:
        return [self._late(self._row(case, mode, peer)) for peer in peers]

    def _release(self) -> None:
        gc.collect()
        if self.options.device.type == "cuda":
            try:
                torch.cuda.empty_cache()
            except RuntimeError as error:
                # a lost GPU; the row that lost it says so, and so will all others
                _print_trace(error)


class _Subject:
    """A case with its inputs; truths and built functions are kept for all modes."""

    def __init__(self, case: Case, options: Options) -> None:
        self.case, self.options = case, options
        self._truths: dict[str, Truth] = {}
        self._functions: dict[Peer, Function] = {}

    @cached_property
    def inputs(self) -> Inputs:
        return draw(self.case, self.options.device, self.options.seed)

    def truth(self, formula: Formula) -> Truth:
        with_gradient = formula is not UNIT and not {"backward", "full"}.isdisjoint(self.options.mode)
        if formula.name not in self._truths:
            try:
                self._truths[formula.name] = find_truth(formula, self.case, self.inputs, with_gradient)
            except Exception as error:
                if is_out_of_memory(error):
                    raise MemoryError(f"in the float64 check: {_first_line(error)}") from error
                raise
        return self._truths[formula.name]

    def function(self, peer: Peer) -> Function:
        if peer not in self._functions:
            self._functions[peer] = peer.build(self.case)
        return self._functions[peer]


def peers_of(mode: str, options: Options) -> list[Peer]:
    """Who is measured in `mode`: our backends, then those asked for of the others that have the mode."""
    if mode == "unit":
        mine = [units.ours(name, fold) for name in options.backends for fold in (False, True)]
        return [*mine, *(UNIT_RIVALS[name] for name in options.peers if name in UNIT_RIVALS)]
    return [*(ours(name) for name in options.backends), *(RIVALS[name] for name in options.peers)]


def run(options: Options) -> int:
    """Measure the grid, write `measurements.csv`, `table.txt` and plots to `options.out`, print the table.

    Rows are added to those of earlier runs in the folder, and table and plots show the last row of each measurement.
    Returns 1 if any result was wrong or any peer failed, else 0.
    """
    path = options.out / "measurements.csv"
    append(path, [])
    if options.device.type == "cuda":
        torch.cuda.set_device(options.device)
    common = {**environment(options.device), "seed": str(options.seed), "seconds": f"{options.seconds:g}"}
    bench = Bench(options, time.monotonic() + options.time_limit, common)
    attention = peers_of("forward", options)
    peers = {mode: peers_of(mode, options) if mode == "unit" else attention for mode in options.mode}
    cases, rows = options.cases(), []
    total = len(cases) * sum(map(len, peers.values()))
    with tqdm(total=total, unit="row", dynamic_ncols=True) as progress:
        for case in cases:
            of_case: list[Row] = []
            try:
                bench.measure_case(case, peers, progress, of_case)
            finally:
                # what was measured before an interrupt counts
                for mode in peers:
                    add_ratios([row for row in of_case if row["mode"] == mode])
                append(path, of_case)
                rows += of_case
    text = "\n".join([table(read(path)), "", *ratio_lines(read(path))])
    (options.out / "table.txt").write_text(text.rstrip() + "\n")
    pictures = plot(read(path), options.out)
    print(table(rows), *ratio_lines(rows), sep="\n")
    print(f"\n{len(rows)} rows added to {path}; plots: {', '.join(map(str, pictures)) or 'none'}")
    bad = [row for row in rows if row["status"] in FAILURES]
    for row in bad:
        print(f"{row['status']}: {row['peer']} {row['mode']}: {row['note']}", file=sys.stderr)
    return 1 if bad else 0


def _print_trace(error: Exception) -> None:
    """Print where `error` came from without breaking the progress bar."""
    tqdm.write("".join(traceback.format_exception(error)), file=sys.stderr)


def _checked(verdict: Verdict, case: Case) -> Row:
    """The columns of the check."""
    row = {"checked_images": f"{verdict.images} of {case.batch}", "note": ""}
    for name, (relative, _) in verdict.errors.items():
        row[f"error_{name}"], row[f"allowed_{name}"] = f"{relative:.2e}", f"{verdict.allowed[name][0]:.2e}"
    if verdict.images < case.batch:
        row["note"] = f"checked on the last {verdict.images} of {case.batch} images"
    return row


def _told(rates: Rates) -> str:
    return f"{rates.source}: {rates.bandwidth / 1e9:.0f} GB/s, {rates.operations / 1e12:.3g} Tflop/s"


def _joined(*notes: str) -> str:
    return "; ".join(note for note in notes if note)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0]
