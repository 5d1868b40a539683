"""Runs one kernel of faults.cu and prints its 256 results: library, kernel, number of the fault. Imports no torch."""

import ctypes
import random
import sys

library, kernel, fault = sys.argv[1], sys.argv[2], int(sys.argv[3])
libc = ctypes.CDLL(None)
libc.aligned_alloc.restype = ctypes.c_void_p
counts = 4 * 256 * 4, 256
memory = [libc.aligned_alloc(ctypes.c_size_t(16), ctypes.c_size_t(4 * count)) for count in counts]
source, results = ((ctypes.c_float * count).from_address(start) for count, start in zip(counts, memory, strict=True))
source[:] = [random.Random(0).random() + i for i in range(len(source))]
error = getattr(ctypes.CDLL(library), f"run_{kernel}")(*map(ctypes.c_void_p, memory), fault)
assert error == 0, error
print(*results)
