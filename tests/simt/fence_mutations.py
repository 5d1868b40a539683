"""Fences that somebody could forget, and memory that is written in turns and would be written too early without."""

from mutations import (
    GROUP_TILE,
    HOPPER_E_STEP,
    HOPPER_GRADIENT,
    HOPPER_TAIL,
    HOPPER_VALUES,
    LONG_LOOP,
    LOOP_E_STEP,
    LOOP_M_STEP,
    LOOP_SUMS,
    RING,
    SHARED_IMAGES,
    Mutation,
)

# what reads too early is the hardware beside the threads (simt_watch.h)
FENCES = [
    Mutation(
        "Hopper's E-step: responsibilities that are not fenced",
        HOPPER_E_STEP,
        "fence_copies();\n    if (io.responsibilities",
        "if (io.responsibilities",
        ("Hopper, one position",),
    ),
    Mutation(
        "Hopper's gradient: gradients that are not fenced",
        HOPPER_GRADIENT,
        "fence_copies();\n    if constexpr (V::M_STEP) {",
        "if constexpr (V::M_STEP) {",
        ("Hopper, one position",),
    ),
    Mutation(
        "Hopper: a warp arrives when one of its threads is there",
        GROUP_TILE,
        "__syncwarp();\n  if (opaque",
        "if (opaque",
        ("Hopper, one position",),
    ),
    Mutation(
        "Hopper's reconstruction: responsibilities that are not fenced",
        HOPPER_VALUES,
        "    fence_copies();\n",
        "",
        ("Hopper, one position",),
    ),
    Mutation(
        "Hopper's unit: y that is not fenced",
        HOPPER_TAIL,
        "fence_copies();\n      meet(1 + group, 128);",
        "meet(1 + group, 128);",
        ("Hopper unit",),
    ),
    Mutation("ring: barriers that are not published", RING, "    publish_barriers();\n", "", ("Hopper, one position",)),
    Mutation(
        "loop: features over bases whose reads are not fenced",
        LOOP_E_STEP,
        "      fence_copies();  // before boxes come over what was read\n",
        "",
        LONG_LOOP,
    ),
    Mutation(
        "loop: responsibilities that are not fenced",
        LOOP_E_STEP,
        "        fence_copies();\n",
        "",
        ("loop, one block",),
    ),
    Mutation(
        "loop: stored responsibilities that are not fenced",
        LOOP_E_STEP,
        "      if (is_last) fence_copies_of_memory();",
        "     ",
        ("loop, one block",),
    ),
    Mutation(
        "loop: bases in memory that are not fenced",
        LOOP_M_STEP,
        "fence_copies_of_memory();  // the bases",
        "fence_copies();  // the bases",
        ("loop, one block",),
    ),
]

# what a kernel reads before those in front of it have ended
WAITS = [
    Mutation(
        "Hopper's reconstruction: value rows come before the kernels in front have ended",
        HOPPER_VALUES,
        "  wait_for_predecessors();\n  if (threadIdx.x == 0) Work<V>(args, shared).load_value_rows();",
        "  if (threadIdx.x == 0) Work<V>(args, shared).load_value_rows();\n  wait_for_predecessors();",
        ("Hopper, one position",),
    ),
    Mutation(
        "Hopper's gradient: numbers of the bases are read before the kernels in front have ended",
        HOPPER_GRADIENT,
        "  wait_for_predecessors();\n  if (threadIdx.x == 0) Work<V>(args, shared).load_all_rows();\n"
        "  if (threadIdx.x < 64) Work<V>(args, shared).load_base(threadIdx.x);",
        "  if (threadIdx.x < 64) Work<V>(args, shared).load_base(threadIdx.x);\n  wait_for_predecessors();\n"
        "  if (threadIdx.x == 0) Work<V>(args, shared).load_all_rows();",
        ("Hopper, one position",),
    ),
]

# a warp or a block must be slower than all others to show them
TURNS = [
    Mutation(
        "Hopper's gradient: weights over those that some warps still read",
        HOPPER_GRADIENT,
        "work.weights(opaque(group)) + i / GROUPS % 2 * POSITIONS",
        "work.weights(group)",
        ("Hopper, few channels",),
    ),
    Mutation(
        "loop: sums over those that another cluster still reads",
        LOOP_SUMS,
        "int64_t{t % 2} * images",
        "int64_t{0} * images",
        SHARED_IMAGES,
    ),
]
