import os

import pytest

import emulation


@pytest.fixture(scope="session", autouse=True)
def can_build():
    reason = emulation.missing()
    if reason is not None:
        pytest.skip(f"kernels cannot be executed on this machine: {reason}")


@pytest.fixture(scope="session")
def core(can_build):
    """All of csrc for the processor; with EMA_SIMT_SANITIZED=1 built with sanitizers, which must be loaded already."""
    return emulation.load_core(sanitized=os.environ.get("EMA_SIMT_SANITIZED") == "1")
