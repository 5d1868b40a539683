"""Two mends for Triton's interpreter (3.6 to 3.9): bfloat16 that is right, and calls that are not slow."""

from __future__ import annotations

import numpy as np
import triton.language as tl
from triton.runtime import interpreter


def mend_bf16() -> None:
    """Decode bfloat16 operands of `tl.dot` (else multiplied as raw bits), and round casts (else truncated)."""
    plain_dot, plain_convert = interpreter.InterpreterBuilder.create_dot, interpreter._convert_float

    def decoded(handle):
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return interpreter.TensorHandle(bf16_to_f32(handle.data), tl.float32)

    def create_dot(self, a, b, d, *rest):
        return plain_dot(self, decoded(a), decoded(b), d, *rest)

    def convert_float(values, from_type, to_type, rounding):
        if (from_type, to_type) == (tl.float32, tl.bfloat16):
            return f32_to_bf16(values.view(np.float32))
        if (from_type, to_type) == (tl.bfloat16, tl.float32):
            return bf16_to_f32(values).view(np.uint32).reshape(values.shape)
        return plain_convert(values, from_type, to_type, rounding)

    interpreter.InterpreterBuilder.create_dot = create_dot
    interpreter._convert_float = convert_float


def bf16_to_f32(bits: np.ndarray) -> np.ndarray:
    """float32 of bfloat16 bits (uint16)."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def f32_to_bf16(values: np.ndarray) -> np.ndarray:
    """bfloat16 bits (uint16) of float32, rounded to nearest even as on a GPU."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded.astype(np.uint16)).reshape(values.shape)


def mend_repeated_patching() -> None:
    """Replace the language's functions by interpreted ones once, not again in every call of every function."""
    plain_patch, patched = interpreter._patch_lang, set()

    def patch_once(function):
        modules = frozenset(value.__name__ for value in function.__globals__.values() if value in (tl, tl.core))
        if modules not in patched:
            patched.add(modules)
            plain_patch(function)
        return interpreter._LangPatchScope()  # nothing to restore: this process only interprets

    interpreter._patch_lang = patch_once
