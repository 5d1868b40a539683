"""What a launch asks the CUDA runtime for, against a runtime that writes its calls down."""

import subprocess

import emulation


def test_a_launch_asks_for_what_its_kernel_needs(can_build, tmp_path):
    """The limit of shared memory once for a kernel and a device, again where it was refused."""
    command = ["g++", "-std=c++17", f"-I{emulation.CSRC}", f"-isystem{emulation.cuda_headers()}"]
    subprocess.run([*command, str(emulation.HERE / "launches.cpp"), "-o", str(tmp_path / "launches")], check=True)
    done = subprocess.run([tmp_path / "launches"], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "allow 1000; error 1",
        "allow 1000; launch 2 with 50000 bytes",
        "launch 3 with 50000 bytes",
        "allow 2000; launch 4 with 50000 bytes",
        "launch 5 with 50000 bytes",
        "allow 1000; launch 6 with 50000 bytes",
        "launch 7 with 1000 bytes",
        "launch 8 with 1000 bytes, cluster 8, overlaps",
        "large clusters 1; launch 9 with 1000 bytes, cluster 16, cooperative",
    ]
