"""Faults in what reads rows that start anywhere, and in what is copied on the way."""

from mutations import Mutation

ANY_ROWS, LOADER, VALUES = "hopper/any_rows.h", "hopper/e_step_loader.h", "hopper/rows_gradient.cu"
FEW, MANY, SPLIT = ("Hopper, odd rows of images",), ("Hopper, many odd rows",), ("Hopper, odd rows of heads",)

ROWS = [
    Mutation("rows: not shifted", ANY_ROWS, "first = 2 * offset();", "first = 0;", FEW),
    Mutation(
        "rows: the end of a line from its begin",
        ANY_ROWS,
        "last ? at(next, i, 0)",
        "last ? at(tile, i, 0)",
        FEW,
    ),
    Mutation(
        "rows: units are shifted that others still need",
        ANY_ROWS,
        "      __syncwarp();\n      *target",
        "      *target",
        FEW,
    ),
    Mutation(
        "rows: channels beyond the last are read",
        ANY_ROWS,
        "first_ + i < features_.channels ?",
        "true ?",
        FEW,
    ),
    Mutation(
        "rows: positions beyond the last are read",
        ANY_ROWS,
        "offset(), 0), 8);",
        "offset() > 0 ? 8 : 0, 0), 8);",
        SPLIT,
    ),
    Mutation(
        "rows: nothing is read behind the last tile",
        LOADER,
        "i < block_.count + Lines::TILES_BEHIND",
        "i < block_.count",
        SPLIT,
    ),
    Mutation(
        "rows: shifted before they have come",
        LOADER,
        "copy_async_wait(block_.args.stages - 3 - Lines::TILES_BEHIND);",
        "",
        FEW,
    ),
    Mutation(
        "rows: shifted before the next tile has come",
        LOADER,
        "stages - 3 - Lines::TILES_BEHIND",
        "stages - 2",
        MANY,
    ),
    Mutation("rows: not fenced", LOADER, "    fence_copies();\n", "", FEW),
    Mutation(
        "rows: multiplied before all are shifted",
        LOADER,
        "fence_copies();\n    meet(2 + group(), GROUP);",
        "fence_copies();",
        FEW,
    ),
    Mutation(
        "rows: read over a tile that is still multiplied",
        LOADER,
        "    wait_for_products<0>();\n",
        "",
        MANY,
    ),
    Mutation("rows: read over a tile that is still stored", LOADER, "wait_for_reads<2>();", "{}", MANY),
    Mutation(
        "rows: boxes of another tile are stored",
        LOADER,
        ".store(box, x_map_, block_.position(i)",
        ".store(box, x_map_, block_.position(0)",
        FEW,
    ),
    Mutation(
        "values: rows are read over a tile that is still needed",
        VALUES,
        "      fill.wait_until_empty();\n",
        "",
        MANY,
    ),
    Mutation("values: shifted before the next tile has come", VALUES, "args.stages - 3", "args.stages - 1", MANY),
    Mutation("values: rows that are not fenced", VALUES, "    fence_copies();\n", "", FEW),
    Mutation(
        "values: one warpgroup reads for both",
        VALUES,
        "GROUP_WARPS * part + opaque",
        "opaque",
        MANY,
    ),
]
