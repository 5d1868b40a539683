"""Faults in the kernels of the unit and of the loop behind a folded convolution."""

from __future__ import annotations

from mutations import BARRIER, Mutation

CONVOLVE, TAIL, FOLDED = "kernels/convolve_bases.cu", "kernels/unit_tail.cu", "folded.cpp"

UNIT = [
    Mutation(
        "unit: convolved bases do not wait for the kernels before them",
        CONVOLVE,
        "  wait_for_predecessors();\n",
        "",
        ("unit",),
    ),
    Mutation(
        "unit: the bias of a chunk of channels",
        CONVOLVE,
        "args.convolution.bias + inner",
        "args.convolution.bias",
        ("unit",),
    ),
    Mutation("unit: powers of sums", CONVOLVE, "args.powers[k] * value", "value", ("unit", "unit float32")),
    Mutation("unit: bases of an image", CONVOLVE, "* padded + base;", "* padded;", ("unit, many bases image",)),
    Mutation(
        "unit: the bias without the temperature", CONVOLVE, "args.factor * bias", "bias", ("unit, many bases image",)
    ),
    Mutation(
        "unit: no barrier before x comes",
        TAIL,
        f"const Output tile{{shared}};\n  {BARRIER}",
        "const Output tile{shared};",
        ("unit", "unit, many channels"),
    ),
    Mutation("unit: no barrier before y is written", TAIL, f"{BARRIER}\n  write_tile(", "write_tile(", ("unit",)),
    Mutation(
        "unit: responsibilities of another base",
        TAIL,
        "r, z_tile(base), r_row",
        "r, z_tile(0), r_row",
        ("unit, many bases image",),
    ),
    Mutation(
        "unit: a later piece of value rows",
        TAIL,
        "if (!ONE_PIECE && base > 0",
        "if (!ONE_PIECE && base > 999",
        ("unit float32 image",),
    ),
    Mutation(
        "unit: no ReLU between",
        TAIL,
        "Math::round(relu(r[0][j][e] / RESPONSIBILITY_SCALE))",
        "Math::round(r[0][j][e] / RESPONSIBILITY_SCALE)",
        ("unit",),
    ),
    Mutation(
        "unit: channels of another group",
        TAIL,
        "OUTPUTS, weight, output, inner",
        "OUTPUTS, weight, 0, inner",
        ("unit, many channels",),
    ),
    Mutation(
        "unit: the last responsibilities of an iteration earlier",
        FOLDED,
        "space.logit_bias, is_last, iteration",
        "space.logit_bias, t == 0, iteration",
        ("unit",),
    ),
    Mutation(
        "folded: the mass of a gradient without the temperature",
        FOLDED,
        "    partials.mass_factor = problem.scale;\n",
        "",
        ("folded fp16 image",),
    ),
    Mutation(
        "folded: all iterations have the bias of the first",
        FOLDED,
        "space.logit_bias + pair * columns",
        "space.logit_bias",
        ("folded", "folded float32"),
    ),
    Mutation(
        "folded: the gradient of the mass of sums divided by powers",
        CONVOLVE,
        "args.powers[row + threadIdx.x / 4] * bias",
        "bias",
        ("folded float32",),
    ),
]
