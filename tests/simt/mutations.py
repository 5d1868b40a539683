"""Faults that somebody could make in the real kernels, and the cases of `kernel_cases` that must fail with each."""

from __future__ import annotations

from typing import NamedTuple


class Mutation(NamedTuple):
    """`text`, which stands once in `file` of csrc, becomes `replacement`."""

    name: str
    file: str
    text: str
    replacement: str
    cases: tuple[str, ...]


E_STEP, GRADIENT, M_STEP = "kernels/e_step.cu", "kernels/e_step_gradient.cu", "kernels/m_step.cu"
PRODUCTS, LINES, PACK = "kernels/rank_k_products.cu", "kernels/base_lines.h", "kernels/pack_bases.cu"
HOPPER_GRADIENT, HOPPER_VALUES = "hopper/e_step_gradient.cu", "hopper/reconstruct_gradient.cu"
TILE, MATH, ROW_BLOCK, PIPELINE = "device/tile.h", "device/math.h", "device/row_block.h", "device/pipeline.h"
HOPPER_PRODUCTS, HOPPER_M_STEP, RING = "hopper/rank_k_products.cu", "hopper/m_step.cu", "hopper/ring.h"
HOPPER_E_STEP, HOPPER_TAIL = "hopper/e_step.cu", "hopper/unit_tail.cu"
FEATURE_TILE, GROUP_TILE = "hopper/feature_tile.h", "hopper/group_tile.h"
ALIGN, UNALIGNED_ROWS = "kernels/align_rows.cu", ("Hopper, unaligned rows", "Hopper, rows of half units")
ODD_ROWS = ("Hopper, odd rows of images", "Hopper, odd rows of heads")
SLOTS, STORE_SUMS, STORE_ROWS = "kernels/add_slots.h", "hopper/store_sums.h", "hopper/store_rows.h"
LOOP_E_STEP, LOOP_M_STEP, LOOP_SUMS = "hopper/loop_e_step.h", "hopper/loop_m_step.h", "hopper/loop_sums.h"
LOOP_END, GRADIENT_BLOCK = "hopper/loop_reconstruction.h", "hopper/gradient_block.h"
LONG_LOOP, SHARED_IMAGES = ("loop fp16, more tiles than stages",), ("loop, clusters of one image",)
WAIT, WAIT_FOR_TOO_FEW = "copy_async_wait(next - 1 - i);", "copy_async_wait(next - i);"
WAIT_EARLY, BARRIER = f"if (!late) {WAIT}", "__syncthreads();"

# tried with every change
QUICK = [
    Mutation(
        "pipeline: no barrier after the wait",
        PIPELINE,
        f"{WAIT_EARLY}\n    {BARRIER}",
        WAIT_EARLY,
        ("fused", "many bases", "little shared memory"),
    ),
    Mutation(
        "bases: read by the block before they are there",
        LINES,
        f"if (lane() == 0) place.values[warp()] = value;\n  {BARRIER}",
        "if (lane() == 0) place.values[warp()] = value;",
        ("fused",),
    ),
    Mutation(
        "Hopper's E-step: responsibilities are multiplied before they are there",
        HOPPER_E_STEP,
        "wait(block.z_full + turn.slot, turn.parity);\n    begin_products();",
        "begin_products();",
        ("Hopper",),
    ),
    Mutation(
        "ring: filled before it is handed back",
        RING,
        "wait_until_empty();\n    arrive_expecting",
        "arrive_expecting",
        ("Hopper",),
    ),
    Mutation(
        "Hopper's products: a result that is not fenced",
        HOPPER_PRODUCTS,
        "fence_copies();\n    meet(1 + group, 128);",
        "meet(1 + group, 128);",
        ("Hopper, one position",),
    ),
]

OTHERS = [
    Mutation(
        "pipeline: a piece is not waited for",
        PIPELINE,
        WAIT_EARLY,
        f"if (!late) {WAIT_FOR_TOO_FEW}",
        ("fused", "little shared memory"),
    ),
    Mutation("bases: lines that overlap", LINES, "pitch(width + LINE_GAP)", "pitch(width / 2)", ("fused",)),
    Mutation(
        "pipeline: no barrier where the slots are few",
        PIPELINE,
        f"{WAIT}\n      {BARRIER}",
        WAIT,
        ("fused", "many bases", "little shared memory"),
    ),
    Mutation("E-step: does not wait for the kernels before it", E_STEP, "  wait_for_predecessors();\n", "", ("fused",)),
    Mutation(
        "E-step: no barrier before the fused M-step", E_STEP, f"z_tile);\n      {BARRIER}", "z_tile);", ("fused",)
    ),
    Mutation("E-step: all splits write one slot", E_STEP, "slot = blockIdx.x", "slot = image", ("fused", "many bases")),
    Mutation(
        "gradient: no barrier before the fused M-step",
        GRADIENT,
        f"tile_memory);\n      {BARRIER}",
        "tile_memory);",
        ("fused",),
    ),
    Mutation("gradient: channels of grad_y", GRADIENT, "chunk - x_chunks)", "chunk)", ("reconstruct", "fused")),
    Mutation(
        "gradient: the wrong weight",
        GRADIENT,
        "weights[1] * (grad[0][j][e + 2] + grad_mass)",
        "weights[0] * (grad[0][j][e + 2] + grad_mass)",
        ("fused", "float32"),
    ),
    Mutation(
        "M-step: channels of a group",
        M_STEP,
        "channel = group * group_width + 64 * channel_group",
        "channel = 64 * channel_group",
        ("many bases fp16 image",),
    ),
    Mutation(
        "products: no barrier before the result",
        PRODUCTS,
        f"{BARRIER}\n  Tile<Word, COLUMNS> tile{{shared}};",
        "Tile<Word, COLUMNS> tile{shared};",
        ("fused", "many bases", "float32"),
    ),
    Mutation(
        "products: no barrier before it is written",
        PRODUCTS,
        f"{BARRIER}\n  write_tile(",
        "write_tile(",
        ("fused",),
    ),
    Mutation("products: one image for all", PRODUCTS, "* args.images + image", "* args.images", ("fused",)),
    Mutation(
        "Hopper's E-step: maxima are read before all are there",
        GROUP_TILE,
        "share_positions(values, maxima, larger);\n  meet(barrier, GROUP);",
        "share_positions(values, maxima, larger);",
        ("Hopper", "loop"),
    ),
    Mutation(
        "Hopper's features: the next 16 positions of the M-step",
        FEATURE_TILE,
        "BASE_LINES ? 32 * k : 2048 * k",
        "BASE_LINES ? 32 * k : 1024 * k",
        ("Hopper",),
    ),
    Mutation(
        "Hopper's E-step: a stage is filled while it is multiplied",
        HOPPER_E_STEP,
        "loader.go_on(i, turn.slot);\n    __syncwarp();",
        "loader.go_on(i, turn.slot + 1 == stages ? 0 : turn.slot + 1);\n    __syncwarp();",
        ("Hopper",),
    ),
    Mutation(
        "Hopper's E-step: positions beyond the last have a weight",
        HOPPER_E_STEP,
        "position + lane(), args.positions);",
        "min(position + lane(), args.positions - 1), args.positions);",
        ("Hopper step",),
    ),
    Mutation(
        "Hopper's E-step: responsibilities are written while the last ones are stored",
        HOPPER_E_STEP,
        "if (thread == 0) wait_for_reads<0>();\n    respond_to",
        "respond_to",
        ("Hopper",),
    ),
    Mutation(
        "Hopper's E-step: stored before all are written",
        HOPPER_E_STEP,
        "meet(1, GROUP);\n      if (thread == 0) {",
        "if (thread == 0) {",
        ("Hopper",),
    ),
    Mutation(
        "Hopper's products: written while the last result is read",
        HOPPER_PRODUCTS,
        "if (stores) wait_for_reads<RESULTS - 1>();",
        "",
        ("Hopper",),
    ),
    Mutation(
        "Hopper's products: stored before all is written",
        HOPPER_PRODUCTS,
        "fence_copies();\n    meet(1 + group, 128);",
        "fence_copies();",
        ("Hopper",),
    ),
    Mutation(
        "Hopper's products: the first product for all",
        HOPPER_PRODUCTS,
        "batch = product * args.batch + work.batch",
        "batch = work.batch",
        ("Hopper",),
    ),
    Mutation(
        "Hopper's products: a map is fetched that was not made",
        HOPPER_PRODUCTS,
        "if (args.boxed) prefetch_map(out);",
        "prefetch_map(out);",
        ODD_ROWS[:1],
    ),
    Mutation(
        "Hopper's products: numbers of odd rows that are not shifted",
        STORE_ROWS,
        "unit(begin / UNIT + 1), begin % UNIT * 2)",
        "unit(begin / UNIT + 1), 0)",
        ODD_ROWS,
    ),
    Mutation(
        "Hopper's products: beyond the end of odd rows",
        STORE_ROWS,
        "begin >= 0 && begin + UNIT <= end",
        "begin >= 0 && begin < end",
        ODD_ROWS,
    ),
    Mutation("copy: one row for all", ALIGN, "in.data + r * in.stride", "in.data + row * in.stride", UNALIGNED_ROWS),
    Mutation(
        "copy: does not wait for the kernels before it", ALIGN, "  wait_for_predecessors();\n", "", UNALIGNED_ROWS
    ),
    Mutation(
        "Hopper's M-step: channels of a group",
        HOPPER_M_STEP,
        "work.channel + i * CHANNELS",
        "i * CHANNELS",
        ("Hopper reconstruct",),
    ),
    Mutation(
        "Hopper's unit: x comes while y is read",
        HOPPER_TAIL,
        "wait_for_reads<0>();\n        arrive_expecting",
        "arrive_expecting",
        ("Hopper unit",),
    ),
    Mutation(
        "Hopper's unit: responsibilities and x come before the last ones are read",
        HOPPER_TAIL,
        "fence_copies();\n      meet(1 + group, 128);",
        "fence_copies();",
        ("Hopper unit",),
    ),
    Mutation(
        "Hopper's unit: channels of the result",
        HOPPER_TAIL,
        "args.bias + work.channel",
        "args.bias",
        ("Hopper unit image",),
    ),
    Mutation(
        "bases: sums of divided weights are not multiplied again",
        SLOTS,
        "partials.sum_factor * weight_power(partials.weight_maxima, place.image)",
        "partials.sum_factor",
        ("step, many bases",),
    ),
    Mutation(
        "slots: the power of another base",
        SLOTS,
        "power = slots[line.powers + piece / 8]",
        "power = slots[(line.powers ^ 1) + piece / 8]",
        ("Hopper",),
    ),
    Mutation("slots: no power", SLOTS, "total[i].x += power * ", "total[i].x += ", ("Hopper",)),
    Mutation("slots: threads to spare add all slots", SLOTS, "int slot = share;", "int slot = 0;", ("Hopper",)),
    Mutation(
        "slots: a power for every thread",
        STORE_SUMS,
        "largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 2));",
        "",
        ("Hopper",),
    ),
    Mutation("slots: one of all blocks", STORE_SUMS, "slots += slot * half", "slots += 0 * half", ("Hopper",)),
    Mutation(
        "bases: packed before they are there",
        PACK,
        f"{BARRIER}\n  write_row<Math>(place, args.num_bases, memory",
        "write_row<Math>(place, args.num_bases, memory",
        ("many images",),
    ),
    Mutation("tile: swizzle beyond the row", TILE, "(row & 7) << 4", "(row & 7) << 5", ("fused",)),
    Mutation(
        "tile: odd elements are not shifted",
        TILE,
        "words[i] >> 16 | words[i + 1] << 16",
        "words[i]",
        ("odd rows", "unaligned"),
    ),
    Mutation("tile: rows beyond the matrix", TILE, "row + r < matrix.rows && left > 0", "left > 0", ("fused",)),
    Mutation(
        "math: fragments of the left operand",
        MATH,
        "tile.at(row + l % 16, inner + l / 16 * 8)",
        "tile.at(row + l % 8 + l / 16 * 8, inner + l / 8 % 2 * 8)",
        ("fused",),
    ),
    Mutation(
        "math: fragments of the right operand",
        MATH,
        "tile.at(column + l % 8 + l / 16 * 8, inner + l / 8 % 2 * 8)",
        "tile.at(column + l % 16, inner + l / 16 * 8)",
        ("fused",),
    ),
    Mutation(
        "math: fragments of tf32", MATH, "k + member + e / 2 * 4", "k + member + e % 2 * 4", ("tf32", "tf32 image")
    ),
    Mutation(
        "rows: positions beyond the last are written",
        ROW_BLOCK,
        "if (n >= positions) continue;",
        "",
        ("fused fp16 image", "fused"),
    ),
    Mutation(
        "rows: bases beyond the last take part",
        ROW_BLOCK,
        "block.base(j, e) < block.num_bases ? Math::exponential(z[j][e] - maxima[e / 2]) : 0.f",
        "Math::exponential(z[j][e] - maxima[e / 2])",
        ("odd rows",),
    ),
    Mutation(
        "rows: a row is combined before all of it is there",
        ROW_BLOCK,
        f"}}\n  {BARRIER}\n#pragma unroll\n  for (int half = 0; half < 2; ++half) {{\n    int row",
        "}\n#pragma unroll\n  for (int half = 0; half < 2; ++half) {\n    int row",
        ("fused", "many bases"),
    ),
    Mutation(
        "rows: masses are added before all are there",
        ROW_BLOCK,
        f"{BARRIER}\n    for (int k = threadIdx.x; k < padded",
        "for (int k = threadIdx.x; k < padded",
        ("step, many bases",),  # elsewhere the length of the bases hides the mass
    ),
    Mutation(
        "Hopper's gradient: tiles are replaced before the M-step has read them",
        HOPPER_GRADIENT,
        "if (V::M_STEP && i >= GROUPS) wait(work.taken(group), (i / GROUPS - 1) & 1);",
        "",
        ("Hopper", "Hopper, all channels"),
    ),
    Mutation(
        "Hopper's gradient: tiles are replaced before they are stored",
        HOPPER_GRADIENT,
        "if (part == 0) wait_for_reads<0>();",
        "",
        ("Hopper", "Hopper, all channels"),
    ),
    Mutation(
        "Hopper's gradient: features are replaced before all warps have multiplied them",
        HOPPER_GRADIENT,
        "meet(barrier, GROUP);",
        "",
        ("Hopper", "Hopper, all channels"),
    ),
    Mutation(
        "Hopper's gradient: tiles are multiplied before all warps have written them",
        HOPPER_GRADIENT,
        "init_barrier(ready(i), GROUP_WARPS);",
        "init_barrier(ready(i), 1);",
        ("Hopper, all channels",),
    ),
    Mutation(
        "Hopper's gradient: positions beyond the last have masses",
        HOPPER_GRADIENT,
        "position + group_thread(), args.positions);",
        "position + group_thread(), 1 << 30);",
        ("Hopper step",),
    ),
    Mutation(
        "loop: features over bases that are not taken yet",
        LOOP_M_STEP,
        "    wait(block_.bases_taken, t & 1);\n",
        "",
        SHARED_IMAGES,
    ),
    Mutation("loop: a stage filled under its products", LOOP_M_STEP, "products<1>();", "products<2>();", LONG_LOOP),
    Mutation(
        "loop: sums over features that the other half reads",
        LOOP_M_STEP,
        "meet(BOTH_HALVES_MEET, 256);  // nobody of this block reads features any more",
        "",
        LONG_LOOP,
    ),
    Mutation("loop: y over a store that reads", LOOP_END, "wait_for_reads<1>();", "wait_for_reads<2>();", LONG_LOOP),
    Mutation(
        "loop: reconstructed before the last bases",
        LOOP_END,
        "    wait(block_.bases_full, args_.num_iters & 1);\n",
        "",
        ("loop",),
    ),
    Mutation(
        "loop: responsibilities handed over before they are there",
        LOOP_E_STEP,
        "if (i > 0) arrive_as_warp(&block_.z_full[(i - 1) % Shape::STAGES]);",
        "if (i < block_.tiles - 1) arrive_as_warp(&block_.z_full[i % Shape::STAGES]);",
        ("loop",),
    ),
    Mutation(
        "loop: positions of another block",
        LOOP_E_STEP,
        "if (position >= block_.positions) return 0;",
        "",
        ("loop",),
    ),
    Mutation(
        "loop: the end of a block over the positions of the next one",
        LOOP_END,
        "if (POSITIONS_FASTEST && !whole) return",
        "if (POSITIONS_FASTEST && whole) return",
        ("loop image, clusters of one image",),
    ),
    Mutation(
        "loop: channels of y that are those of another part",
        LOOP_END,
        "(half_ * HALF_PANELS + part) * WIDE_PANEL",
        "half_ * HALF_PANELS * WIDE_PANEL",
        ("loop image",),
    ),
    Mutation(
        "loop: a cluster does not wait for the others",
        LOOP_SUMS,
        "wait_for_count(count, (t + 1) * args_.plan.clusters)",
        "wait_for_count(count, t * args_.plan.clusters)",
        SHARED_IMAGES,
    ),
    Mutation(
        "Hopper's features: positions of a line that products read twice",
        FEATURE_TILE,
        "POSITIONS_FASTEST ? 32 * k : 2048 * k",
        "POSITIONS_FASTEST ? 0 : 2048 * k",
        ("Hopper image, all channels",),
    ),
    Mutation(
        "Hopper's features: channels of lines that products leave out",
        FEATURE_TILE,
        "POSITIONS_FASTEST ? k * 16 * LINE",
        "POSITIONS_FASTEST ? k * 8 * LINE",
        ("Hopper image, all channels",),
    ),
    Mutation(
        "Hopper's gradient: what comes from the reconstruction is weighted",
        HOPPER_GRADIENT,
        "grad_mass[8 * half]) +\n                from_values[at(c) + 2 * half];",
        "grad_mass[8 * half] +\n                from_values[at(c) + 2 * half]);",
        ("Hopper, all channels",),
    ),
    Mutation(
        "Hopper's reconstruction: features are handed back by a few",
        HOPPER_VALUES,
        "ring().init(V::THREADS / 32);",
        "ring().init(V::THREADS / 32 - 4);",
        ("Hopper, all channels", "Hopper"),
    ),
    Mutation(
        "Hopper's reconstruction: handed back before it is multiplied",
        HOPPER_VALUES,
        "wait_for_products<0>();\n    ring.hand_back();",
        "ring.hand_back();\n    wait_for_products<0>();",
        ("Hopper, all channels", "Hopper"),
    ),
    Mutation(
        "Hopper's reconstruction: products beyond the last position over those of the next image",
        GRADIENT_BLOCK,
        "    if (position >= work.args.positions) continue;\n",
        "",
        ("Hopper",),
    ),
    Mutation(
        "Hopper's reconstruction: channels of a warpgroup",
        HOPPER_VALUES,
        "work.z(ring.slot), part * (COLUMNS / 64));",
        "work.z(ring.slot), 0);",
        ("Hopper, all channels",),
    ),
    Mutation(
        "Hopper's reconstruction: responsibilities are multiplied before they are there",
        HOPPER_VALUES,
        "    wait(work.z_full(ring.slot), ring.parity());\n",
        "",
        ("Hopper, all channels",),
    ),
    Mutation(
        "Hopper's reconstruction: responsibilities over those that are still multiplied",
        HOPPER_VALUES,
        "grad_y.wait_until_full();  // so all have read the last responsibilities of this stage\n    store_positions",
        "store_positions",
        ("Hopper, all channels",),
    ),
]
