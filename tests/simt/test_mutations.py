"""Whether the tests of the kernels would notice: each fault of `mutations`, made in a copy of csrc, must fail one."""

from __future__ import annotations

import shutil

import emulation
import pytest
from any_rows_mutations import ROWS
from byte_rows_mutations import BYTES
from fence_mutations import FENCES, TURNS, WAITS
from mutations import OTHERS, QUICK
from pair_mutations import PAIRS
from unit_mutations import UNIT

named = {"ids": lambda mutation: mutation.name}


def assert_noticed(mutation, folder):
    copy = folder / "csrc"
    shutil.copytree(emulation.CSRC, copy)
    path = copy / mutation.file
    assert path.read_text().count(mutation.text) == 1, f"{mutation.file} has changed: {mutation.text!r} must stand once"
    path.write_text(path.read_text().replace(mutation.text, mutation.replacement))
    library = emulation.build_core(source=copy)
    for order in ("forward", "reverse", "shuffled"):
        for case in mutation.cases:
            done = emulation.run("kernel_cases.py", library, case, EMA_SIMT_ORDER=order)
            if done.returncode != 0:
                assert "AssertionError" in done.stderr or "simt: block" in done.stderr, done.stderr
                return
    pytest.fail(f"nothing failed in {', '.join(mutation.cases)}")


@pytest.mark.parametrize("mutation", QUICK, **named)
def test_faults_are_noticed(mutation, tmp_path):
    assert_noticed(mutation, tmp_path)


@pytest.mark.mutations
@pytest.mark.parametrize("mutation", [*OTHERS, *UNIT, *PAIRS, *FENCES, *WAITS, *TURNS, *ROWS, *BYTES], **named)
def test_more_faults_are_noticed(mutation, tmp_path):
    assert_noticed(mutation, tmp_path)
