"""Faults sown into a small kernel of Hopper's kind must show: as an abort that says where, or as another result."""

from __future__ import annotations

import re
import signal

import emulation
import pytest

SOURCE = emulation.HERE / "faults_hopper.cu"
NAMES = re.findall(r"\w+", SOURCE.read_text().split("enum Fault {")[1].split("}")[0])
ORDERS = ["forward", "reverse", "shuffled"]


@pytest.fixture(scope="module")
def library(can_build):
    return emulation.build("faults_hopper", [SOURCE])


def run(library, kernel, fault, order):
    return emulation.run("run_fault.py", library, kernel, NAMES.index(fault), EMA_SIMT_ORDER=order)


@pytest.mark.parametrize("kernel", ["ring", "echo", "pair"])
def test_sound_kernels_give_one_result_in_every_order(library, kernel):
    done = [run(library, kernel, "sound", order) for order in ORDERS]
    assert [each.returncode for each in done] == [0] * 3, done[0].stderr
    assert len({each.stdout for each in done}) == 1
    assert "nan" not in done[0].stdout


def test_sound_kernels_pass_the_sanitizers(can_build):
    library = emulation.build("faults_hopper", [SOURCE], sanitized=True)
    for kernel in ("ring", "echo", "pair"):
        done = emulation.run("run_fault.py", library, kernel, 0, sanitized=True, EMA_SIMT_ORDER="shuffled")
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("fault", "orders"),
    [
        ("no_wait_for_boxes", ["forward", "reverse"]),
        ("no_wait_for_products", ["reverse"]),
        ("no_meeting_before_release", ["reverse"]),
        ("no_wait_for_release", ["reverse"]),
        ("wrong_major", ORDERS),
        ("wrong_step", ORDERS),
        ("no_wait_for_reads", ["reverse"]),
    ],
)
def test_faults_that_show(library, fault, orders):
    """As another result, or as an error on the way."""
    sound = run(library, "ring", "sound", "forward").stdout
    for order in orders:
        done = run(library, "ring", fault, order)
        assert done.returncode != 0 or done.stdout != sound, order


@pytest.mark.parametrize(
    ("fault", "order", "words"),
    [
        ("too_many_arrivals", "forward", "more than the 1 arrivals of the barrier at byte"),
        (
            "arrival_missed",
            "forward",
            r"wait \(at byte 17408 of shared memory: parity 0, 1 of 2 arrivals and 0 bytes",
        ),
        ("fewer_bytes", "reverse", "16 bytes more have landed than the barrier expects"),
        ("more_bytes", "forward", "deadlock: 129 of 256 threads are alive and all of them wait"),
        ("no_init", "forward", "nobody has initialised this barrier"),
        ("no_begin", "forward", "a product without begin_products after the last wait"),
        ("three_warps", "forward", r"wait_for_products \(only 96 of 128 threads have started the product at .*\.cu:"),
        ("other_operands", "forward", "with other operands, than thread 0 started at"),
        ("products_left", "forward", "without having waited for its products"),
        ("box_outside", "forward", "a box from byte 24576 to 32768 of 17440 bytes of shared memory"),
        ("box_misaligned", "forward", "a box at byte 64 of shared memory: expected a multiple of 128"),
        ("box_between_units", "forward", "a box from column 4 on: expected a multiple of 8"),
        ("operand_outside", "forward", "operand A from byte 16384 to 24576 of 17440 bytes of shared memory"),
        ("operand_between", "forward", "not in the first of 8 lines"),
        ("other_count", "forward", r"meet\(1, 64\), while others meet there as 128 at"),
        ("copy_left", "reverse", "the block has left and nobody has waited for this copy"),
        ("store_left", "forward", "leaves the kernel before this store has read shared memory"),
        ("no_publish", "forward", "thread 0 has initialised this barrier without publish_barriers behind it"),
        ("no_fence", "forward", "a box at byte 16384 of shared memory, which thread 0 wrote without fence_copies"),
        ("no_fence_of_memory", "forward", "a copy from memory that thread 3 wrote without fence_copies_of_memory"),
        ("no_fence_before_copy", "forward", "a copy at byte 0 of shared memory, which thread 0 wrote without fence"),
        ("no_fence_after_read", "forward", "a copy at byte 0 of shared memory, which thread 32 read without fence"),
        ("peer_has_left", "reverse", "block 1 of the cluster has left the kernel"),
        ("no_such_peer", "forward", "block 2 of a cluster of 2"),
        ("count_without_cooperation", "forward", "blocks that wait for each other want a cooperative launch"),
    ],
)
def test_faults_that_abort(library, fault, order, words):
    kernel = "pair" if fault in NAMES[NAMES.index("peer_has_left") :] else "ring"
    if fault in ("no_fence_of_memory", "no_fence_before_copy", "no_fence_after_read"):
        kernel = "echo"
    done = run(library, kernel, fault, order)
    assert done.returncode == -signal.SIGABRT, done.stdout
    assert re.search(words, done.stderr), done.stderr
    assert "faults_hopper.cu:" in done.stderr
