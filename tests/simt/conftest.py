import emulation
import pytest


@pytest.fixture(scope="session", autouse=True)
def can_build():
    reason = emulation.missing()
    if reason is not None:
        pytest.skip(f"kernels cannot be executed on this machine: {reason}")
