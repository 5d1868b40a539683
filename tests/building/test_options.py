"""The environment variables of the build: what they mean, and a clear error for what they cannot mean."""

import pytest

from building import jobs
from building.backend import get_requires_for_build_editable, get_requires_for_build_wheel
from building.options import DEFAULT_ARCHITECTURES, Architecture, Options, parse_architectures
from building.toolkit import PIP_PACKAGES


def test_nothing_set_and_everything_empty_are_the_same():
    names = ("EMA_OPS_BUILD_CUDA", "EMA_OPS_CUDA_ARCHS", "MAX_JOBS", "EMA_OPS_NVCC_FLAGS")
    assert Options.read({}) == Options.read(dict.fromkeys(names, "")) == Options("auto", None, None, ())


def test_everything_set():
    environ = {
        "EMA_OPS_BUILD_CUDA": "1",
        "EMA_OPS_CUDA_ARCHS": "80",
        "MAX_JOBS": "3",
        "EMA_OPS_NVCC_FLAGS": "-lineinfo '-DNAME=a b'",
    }
    assert Options.read(environ) == Options("1", (Architecture("80"),), 3, ("-lineinfo", "-DNAME=a b"))


def test_default_architectures():
    names = [(a.name, a.ptx) for a in parse_architectures(DEFAULT_ARCHITECTURES)]
    assert names == [("80", False), ("86", False), ("89", False), ("90a", False), ("100", False), ("120", True)]


@pytest.mark.parametrize("text", ["80;90a;120+PTX", "8.0, 9.0a, 12.0+PTX", "80 90a 120 120+PTX", ";80;80;90a;120+PTX;"])
def test_spellings_of_a_list(text):
    assert parse_architectures(text) == (Architecture("80"), Architecture("90a"), Architecture("120", ptx=True))


def test_gencode():
    assert Architecture("90a").gencode == "arch=compute_90a,code=sm_90a"
    assert Architecture("120", ptx=True).gencode == "arch=compute_120,code=[sm_120,compute_120]"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("EMA_OPS_BUILD_CUDA", "yes", "EMA_OPS_BUILD_CUDA is 'yes': expected one of auto, 1, 0, pip"),
        ("EMA_OPS_CUDA_ARCHS", "75", "expected compute capabilities from 8.0, such as .*, not '75'"),
        ("EMA_OPS_CUDA_ARCHS", "80;sm_90", "EMA_OPS_CUDA_ARCHS is '80;sm_90': .*, not 'sm_90'"),
        ("EMA_OPS_CUDA_ARCHS", "80a", "expected no 'a' in '80a', as only architectures from 90 on have it"),
        ("EMA_OPS_CUDA_ARCHS", "9.0f", "expected no 'f' in '9.0f', as only architectures from 100 on have it"),
        ("EMA_OPS_CUDA_ARCHS", "90a+PTX", r"expected no \+PTX in '90a\+PTX'"),
        ("EMA_OPS_CUDA_ARCHS", ";", "EMA_OPS_CUDA_ARCHS is ';': expected a list such as"),
        ("MAX_JOBS", "0", "MAX_JOBS is '0': expected a whole number of at least 1"),
        ("MAX_JOBS", "two", "MAX_JOBS is 'two'"),
        ("MAX_JOBS", "2.5", "MAX_JOBS is '2.5'"),
        (
            "EMA_OPS_NVCC_FLAGS",
            "-DNAME='a",
            "EMA_OPS_NVCC_FLAGS is .*: expected words.*No closing quotation",
        ),
    ],
)
def test_bad_value(name, value, expected):
    with pytest.raises(ValueError, match=expected):
        Options.read({name: value})


@pytest.mark.parametrize(
    ("cores", "gigabytes", "expected"), [(2, 64, 2), (16, 9, 4), (16, 1, 1), (1, 0, 1), (64, 1000, 64)]
)
def test_jobs_are_capped_by_cores_and_memory(cores, gigabytes, expected):
    assert jobs.default_jobs(cores, gigabytes << 30) == expected


def test_jobs_here():
    assert jobs.default_jobs(jobs.usable_cores(), jobs.free_memory()) in range(1, jobs.usable_cores() + 1)


def test_memory_limit_of_a_container(tmp_path):
    assert jobs.free_in_group(tmp_path, 100) == 100
    (tmp_path / "memory.current").write_text("70\n")
    (tmp_path / "memory.stat").write_text("anon 40\ninactive_file 20\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert jobs.free_in_group(tmp_path, 100) == 100
    (tmp_path / "memory.max").write_text("90\n")
    assert jobs.free_in_group(tmp_path, 100) == 90 - 70 + 20


def test_nvcc_is_asked_for_from_pip_only_when_wanted(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for hook in (get_requires_for_build_wheel, get_requires_for_build_editable):
        monkeypatch.setenv("EMA_OPS_BUILD_CUDA", "auto")
        assert hook() == []
        monkeypatch.setenv("EMA_OPS_BUILD_CUDA", "pip")
        assert hook() == list(PIP_PACKAGES)
