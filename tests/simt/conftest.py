import emulation
import pytest


@pytest.fixture(scope="session", autouse=True)
def can_build():
    reason = emulation.missing()
    if reason is not None:
        pytest.skip(f"kernels cannot be executed on this machine: {reason}")


@pytest.fixture(scope="session")
def core_file(can_build):
    """The file of the core built for the processor."""
    return emulation.build_core()
