"""Faults in what reads features of 8 bits."""

from mutations import Mutation

BYTE_ROWS, LOADER = "hopper/byte_rows.h", "hopper/e_step_loader.h"
ROWS, IMAGE, MANY = ("Hopper, 8 bits",), ("Hopper, 8 bits of an image",), ("Hopper, many tiles of 8 bits",)

BYTES = [
    Mutation(
        "8 bits: the last unit is not read", BYTE_ROWS, "offset(from) > 0) copy_async_16", "false) copy_async_16", ROWS
    ),
    Mutation(
        "8 bits: the end of a line from its begin",
        BYTE_ROWS,
        "units[spot(unit() + 1)]",
        "units[spot(unit())]",
        IMAGE,
    ),
    Mutation(
        "8 bits: widened over units that others still need",
        BYTE_ROWS,
        "      __syncwarp();\n",
        "",
        ROWS,
    ),
    Mutation("8 bits: units where no box has them", BYTE_ROWS, "units[place ^ 1]", "units[place + 1]", IMAGE),
    Mutation("8 bits: channels beyond the last are read", BYTE_ROWS, "min(max(end - 16 * number, 0), 16)", "16", ROWS),
    Mutation("8 bits: positions beyond the last are read", BYTE_ROWS, "positions >= TILE_POSITIONS", "true", ROWS),
    Mutation(
        "8 bits: widened before they have come",
        LOADER,
        "stages - 3 - Lines::TILES_BEHIND",
        "stages - 1",
        MANY,
    ),
    Mutation("8 bits: not fenced", LOADER, "    fence_copies();\n", "", ROWS),
]
