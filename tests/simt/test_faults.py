"""Faults sown into small kernels must show: as an abort that says where, or as another result."""

from __future__ import annotations

import signal

import emulation
import pytest

NAMES = [
    "sound", "no_barrier_before_reading", "no_barrier_before_reuse", "no_wait", "wait_for_too_few", "wrong_stride",
    "wrong_fragment_order", "divergent_barrier", "barrier_missed", "divergent_lanes", "lane_has_left",
    "shuffle_from_outside", "misaligned_copy", "misaligned_matrix", "matrix_outside", "shared_write_outside",
    "shared_read_outside", "global_read_outside", "global_write_outside",
]  # fmt: skip
KERNELS = ["pipeline", "product", "meetings", "edges"]
ORDERS = ["forward", "reverse", "shuffled"]


@pytest.fixture(scope="module")
def library(can_build):
    return emulation.build("faults", [emulation.HERE / "faults.cu"])


@pytest.fixture(scope="module")
def sanitized_library(can_build):
    return emulation.build("faults", [emulation.HERE / "faults.cu"], sanitized=True)


def run(library, kernel, fault, order="forward", sanitized=False):
    return emulation.run("run_fault.py", library, kernel, NAMES.index(fault), sanitized=sanitized, EMA_SIMT_ORDER=order)


def results(library, kernel, fault, order="forward"):
    done = run(library, kernel, fault, order)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("kernel", KERNELS)
def test_sound_kernels_give_one_result_in_every_order(library, kernel):
    forward, *others = (results(library, kernel, "sound", order) for order in ORDERS)
    assert "nan" not in forward
    assert others == [forward] * 2


@pytest.mark.parametrize(
    ("kernel", "fault"),
    [
        ("pipeline", "no_barrier_before_reading"),
        ("pipeline", "no_barrier_before_reuse"),
        ("pipeline", "no_wait"),
        ("pipeline", "wait_for_too_few"),
        ("pipeline", "wrong_stride"),
        ("product", "wrong_fragment_order"),
    ],
)
def test_faults_that_change_the_result(library, kernel, fault):
    sound = results(library, kernel, "sound")
    assert all(results(library, kernel, fault, order) != sound for order in ORDERS)


@pytest.mark.parametrize(
    ("kernel", "fault", "words"),
    [
        ("meetings", "divergent_barrier", "__syncthreads here in thread 0, but thread 32 is at"),
        ("meetings", "barrier_missed", "deadlock: 256 of 256 threads are alive and all of them wait"),
        ("meetings", "divergent_lanes", "__syncwarp with mask ffffffff, while lane 0 is in a shuffle"),
        ("meetings", "lane_has_left", "only lanes fffffff7 are left"),
        ("meetings", "shuffle_from_outside", "lane 0 shuffles from lane 16, which takes no part"),
        ("meetings", "shared_write_outside", "outside its 1024 bytes of shared memory"),
        ("product", "misaligned_matrix", "of shared memory: expected a multiple of 16"),
        ("product", "matrix_outside", "of 768 bytes of shared memory"),
        ("edges", "misaligned_copy", "expected a multiple of 16"),
    ],
)
def test_faults_that_abort(library, kernel, fault, words):
    done = run(library, kernel, fault)
    assert done.returncode == -signal.SIGABRT, done.stdout
    assert "simt: block (0, 0, 0), thread (" in done.stderr
    assert words in done.stderr
    assert "faults.cu:" in done.stderr


@pytest.mark.parametrize("kernel", KERNELS)
def test_sound_kernels_pass_the_sanitizers(sanitized_library, kernel):
    done = run(sanitized_library, kernel, "sound", sanitized=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize(
    ("kernel", "fault"),
    [
        ("pipeline", "shared_read_outside"),
        ("meetings", "shared_write_outside"),
        ("edges", "global_read_outside"),
        ("edges", "global_write_outside"),
    ],
)
def test_faults_that_the_sanitizers_catch(sanitized_library, kernel, fault):
    done = run(sanitized_library, kernel, fault, sanitized=True)
    assert done.returncode != 0
    assert "AddressSanitizer" in done.stderr
    assert "faults.cu" in done.stderr or "simt_ptx.h" in done.stderr
