"""Faults of two blocks that share responsibilities, for `test_mutations`."""

from __future__ import annotations

from mutations import BARRIER, HOPPER_PRODUCTS, RING, Mutation

PAIRED = ("Hopper", "Hopper image, constant bases")

PAIRS = [
    Mutation("shared: copies to one block", HOPPER_PRODUCTS, "BOTH_BLOCKS = 0b11", "BOTH_BLOCKS = 0b01", PAIRED),
    Mutation(
        "shared: bytes of one block",
        HOPPER_PRODUCTS,
        "2 : 1) * OPERAND_BYTES",
        "2 : 1) * OPERAND_BYTES / blocks",
        PAIRED,
    ),
    Mutation(
        "shared: the first half twice", HOPPER_PRODUCTS, "tile * PRODUCTS_TILE + line;", "tile * PRODUCTS_TILE;", PAIRED
    ),
    Mutation("shared: halves over each other", HOPPER_PRODUCTS, " + line * CHUNK_BYTES;", ";", PAIRED),
    Mutation(
        "shared: boxes of blocks alone", HOPPER_PRODUCTS, "PRODUCTS_TILE / plan.cluster);", "PRODUCTS_TILE);", PAIRED
    ),
    Mutation(
        "shared: right operands of both to one",
        HOPPER_PRODUCTS,
        "copy_box(right_of(product) + i * BOX_BYTES,",
        "copy_box_to(BOTH_BLOCKS, right_of(product) + i * BOX_BYTES,",
        PAIRED,
    ),
    Mutation(
        "shared: each hands its own slot back",
        HOPPER_PRODUCTS,
        "args.plan.slots, blocks);",
        "args.plan.slots);",
        PAIRED,
    ),
    Mutation(
        "shared: a slot is filled again before the other block has read it",
        RING,
        "arrive_at(&empty_[slot], lane());",
        "arrive_at(&empty_[slot], cluster_rank());",
        PAIRED,
    ),
    Mutation("shared: a block leaves while the other one arrives", HOPPER_PRODUCTS, "    ring.drain();\n", "", PAIRED),
    Mutation("shared: copies before the other block is there", HOPPER_PRODUCTS, "meet_cluster();", BARRIER, PAIRED),
]
