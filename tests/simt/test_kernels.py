"""The real kernels on the processor: any order of blocks and warps, and under the sanitizers."""

from __future__ import annotations

import emulation


def test_results_do_not_depend_on_the_order(can_build):
    core, outputs = emulation.build_core(), []
    for order, processors in (("forward", "1"), ("shuffled", "2")):
        done = emulation.run("kernel_cases.py", core, EMA_SIMT_ORDER=order, EMA_SIMT_THREADS=processors)
        assert done.returncode == 0, f"{order}: {done.stdout}\n{done.stderr}"
        outputs.append(done.stdout)
    assert outputs[0]
    assert outputs[0] == outputs[1]


def test_no_access_outside_an_allocation(can_build):
    done = emulation.run("kernel_cases.py", emulation.build_core(sanitized=True), sanitized=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert done.stdout
