"""The real kernels on the processor: any order of blocks and warps, and under the sanitizers."""

from __future__ import annotations

import os
import subprocess
import sys

import emulation

PROGRAM = str(emulation.HERE / "kernel_cases.py")


def test_results_do_not_depend_on_the_order(core_file):
    outputs = []
    for order, processors in (("forward", "1"), ("reverse", "2"), ("shuffled", "2")):
        environment = {**os.environ, "EMA_SIMT_ORDER": order, "EMA_SIMT_THREADS": processors}
        done = subprocess.run(
            [sys.executable, PROGRAM, str(core_file)], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{order}: {done.stdout}\n{done.stderr}"
        outputs.append(done.stdout)
    assert outputs[0]
    assert outputs[1:] == [outputs[0]] * 2


def test_no_access_outside_an_allocation():
    core_file = emulation.build_core(sanitized=True)
    done = emulation.run_sanitized([PROGRAM, str(core_file)])
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert done.stdout
