"""Tests of the benchmarks run with tiny rates, whose measurement otherwise takes longer than they do."""

import pytest

pytest.importorskip("matplotlib", reason="the bench extra is not installed")
pytest.importorskip("tqdm", reason="the bench extra is not installed")


@pytest.fixture(autouse=True)
def small_rates(monkeypatch):
    monkeypatch.setattr("benchmarks.floor.COPY_BYTES", {"cpu": 1 << 20, "cuda": 1 << 20})
    monkeypatch.setattr("benchmarks.floor.MATRIX_SIDE", {"cpu": 64, "cuda": 64})
