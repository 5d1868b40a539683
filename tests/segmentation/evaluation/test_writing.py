"""The writer: order, bounded memory, errors that arrive."""

import threading

import pytest
from PIL import Image

from ema_ops.segmentation.evaluation.writing import Writer, save_png


def test_one_thread_keeps_the_order():
    written = []
    with Writer(threads=1) as writer:
        for number in range(100):
            writer.submit(written.append, number)
    assert written == list(range(100))


def test_leaving_waits_for_all():
    written = []
    with Writer(threads=4) as writer:
        for number in range(50):
            writer.submit(written.append, number)
    assert sorted(written) == list(range(50))


def test_few_wait():
    go, submitted = threading.Event(), []

    def submit_all():
        with Writer(threads=1, waiting=3) as writer:
            for number in range(10):
                writer.submit(go.wait)
                submitted.append(number)

    thread = threading.Thread(target=submit_all)
    thread.start()
    thread.join(0.2)
    assert submitted == [0, 1, 2]
    go.set()
    thread.join()
    assert len(submitted) == 10


def fail():
    raise OSError("disk is full")


def test_error_arrives_on_leaving():
    with pytest.raises(OSError, match="disk is full"), Writer(threads=2) as writer:
        writer.submit(fail)


def test_error_stops_a_long_run():
    submitted = 0

    def run():
        nonlocal submitted
        with Writer(threads=1, waiting=4) as writer:
            for _ in range(1000):
                writer.submit(fail)
                submitted += 1

    with pytest.raises(OSError, match="disk is full"):
        run()
    assert submitted <= 5


def test_when_the_block_fails_what_waits_is_dropped():
    go, written = threading.Event(), []

    def run():
        with Writer(threads=1) as writer:
            writer.submit(go.wait)
            writer.submit(written.append, 1)
            threading.Timer(0.1, go.set).start()
            raise KeyError("of the block")

    with pytest.raises(KeyError, match="of the block"):
        run()
    assert written == []


def test_png_in_a_new_folder(tmp_path):
    save_png(Image.new("L", (3, 2)), tmp_path / "a" / "b.png")
    assert Image.open(tmp_path / "a" / "b.png").size == (3, 2)


def test_png_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "a").write_text("a file, no folder")
    with pytest.raises(OSError, match=r"a/b\.png cannot be written"):
        save_png(Image.new("L", (3, 2)), tmp_path / "a" / "b.png")
