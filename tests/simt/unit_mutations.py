"""Faults in the kernels of the unit and of the loop behind a folded convolution."""

from __future__ import annotations

from mutations import BARRIER, HOPPER_TAIL, RING, Mutation

BETWEEN, CONVOLVE, TAIL = "kernels/between_iterations.h", "kernels/convolve_bases.cu", "kernels/unit_tail.cu"
FOLDED, END_ITERATION, TAIL_ROWS = "folded.cpp", "hopper/end_iteration.cu", "hopper/unit_tail_rows.h"

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
        BETWEEN,
        "args.convolution.bias + inner",
        "args.convolution.bias",
        ("unit",),
    ),
    Mutation("unit: powers of sums", BETWEEN, "args.powers[k] * value", "value", ("unit", "unit float32")),
    Mutation("unit: bases of an image", BETWEEN, "* padded + base;", "* padded;", ("unit, many bases image",)),
    Mutation(
        "unit: the bias without the temperature", BETWEEN, "args.factor * bias", "bias", ("unit, many bases image",)
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
        BETWEEN,
        "args.powers[row + threadIdx.x / 4] * bias",
        "bias",
        ("folded float32",),
    ),
    Mutation(
        "folded: blocks do not meet before they read what others packed",
        END_ITERATION,
        "meet_cluster();\n  }\n  convolve.rows = io.packed",
        "}\n  convolve.rows = io.packed",
        ("Hopper folded",),
    ),
    Mutation(
        "folded: blocks do not meet before they read what others normalised",
        END_ITERATION,
        "meet_cluster();\n  convolve.rows = io.next",
        "convolve.rows = io.next",
        ("Hopper folded",),
    ),
    # two blocks that share a ring
    Mutation(
        "pair: a piece is replaced before the other block has read it",
        RING,
        "arrive_at(&empty_[slot], lane());",
        "arrive_at(&empty_[slot], cluster_rank());",
        ("Hopper unit",),
    ),
    Mutation(
        "pair: a piece is replaced when half of the warps have read it",
        RING,
        "init_barrier(&empty_[i], blocks_ * readers);",
        "init_barrier(&empty_[i], readers);",
        ("Hopper unit",),
    ),
    Mutation(
        "pair: a block leaves while the other one arrives",
        HOPPER_TAIL,
        "    ring.drain();\n",
        "",
        ("Hopper unit", "Hopper unit image"),
    ),
    Mutation(
        "pair: copies and arrivals before the other block is there",
        HOPPER_TAIL,
        "meet_cluster();",
        BARRIER,
        ("Hopper unit",),
    ),
    Mutation("pair: copies to one block", HOPPER_TAIL, "BOTH_BLOCKS = 0b11", "BOTH_BLOCKS = 0b10", ("Hopper unit",)),
    Mutation(
        "pair: bytes of one block",
        HOPPER_TAIL,
        "begin_fill(UNIT_TAIL_SLOT_BYTES)",
        "begin_fill(UNIT_TAIL_SLOT_BYTES / blocks)",
        ("Hopper unit",),
    ),
    Mutation("pair: half of the weight", HOPPER_TAIL, "work.channel + weight_line", "work.channel", ("Hopper unit",)),
    Mutation("pair: half of the bases", HOPPER_TAIL, "64 * chunk, value_line,", "64 * chunk, 0,", ("Hopper unit",)),
    Mutation(
        "pair: positions of the first block",
        HOPPER_TAIL,
        "(tile * blocks + rank) *",
        "tile * blocks *",
        ("Hopper unit",),
    ),
    # x whose rows start anywhere
    Mutation(
        "unit, rows: a unit is shifted before its neighbour was read",
        TAIL_ROWS,
        "2 * offset(i));\n      __syncwarp();",
        "2 * offset(i));",
        ("Hopper unit, odd rows",),
    ),
    Mutation("unit, rows: the end of a line", TAIL_ROWS, "? ends_[i] :", "? low :", ("Hopper unit, odd rows",)),
    Mutation(
        "unit, rows: shifted before they have come",
        TAIL_ROWS,
        "    copy_async_wait(0);\n",
        "",
        ("Hopper unit, odd rows",),
    ),
    Mutation(
        "unit, rows: x comes where y of the tile before is",
        HOPPER_TAIL,
        "        wait(theirs.result_is_stored, ((tile - work.tiles.begin) & 1) ^ 1);\n",
        "",
        ("Hopper unit, odd rows",),
    ),
    Mutation(
        "unit, rows: y is stored before it is whole",
        HOPPER_TAIL,
        "meet(1 + group, 128);\n      store_rows",
        "store_rows",
        ("Hopper unit, odd rows",),
    ),
]
