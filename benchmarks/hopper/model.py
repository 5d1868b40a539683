"""A model of the time of the Hopper kernels on an H200: what bounds each launch, in clocks of one multiprocessor.

All rates but two are assumed; `experiments.cu` measures them. `python -m benchmarks.hopper.model` prints the table of
docs/hopper.md. K is 64: fewer bases cost the same, and more are not served.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

CLOCK = 1.755e9  # Hz
MULTIPROCESSORS = 132
BASES, ROW = 64, 64  # a unit of work is ROW positions of C channels
PRODUCT_RATE = 4096 * 0.83  # operations a clock of one multiprocessor; 0.83 of the data sheet was measured
MEMORY_RATE = 4.3e12 / CLOCK  # bytes a clock of the device, measured
CACHE_RATE = 5.5e12 / CLOCK  # from L2, assumed
PORT_RATE = 40.0  # bytes a clock between one multiprocessor and L2 at best, assumed
CACHE_BYTES = 40e6  # of the features that the L2 still has in the next pass, assumed
GAP = 1.0e-6 * CLOCK  # from one kernel to the next, assumed
FILL = 1500.0  # of the pipeline when a kernel starts, assumed
TAIL = 1000.0  # the last tile, alone, assumed
# bytes of L2 for nothing, for a byte of rows that start anywhere: 64 of them lie in two or three sectors of 32, and 32,
# of features of 8 bits, in two
WASTE, WASTE_OF_8_BITS = 0.25, 1.0
# instructions that one scheduler, one a clock, issues for 32 positions of 512 channels, counted in the machine code:
# responsibilities; rows that start anywhere; features of 8 bits, of rows at multiples of 16 bytes and of any
SOFTMAX, SHIFT, WIDEN, WIDEN_ANY = 500.0, 980.0, 770.0, 920.0
STORE_RATE = 40.0  # bytes of rows that start anywhere that the threads of the end of the unit store in a clock, assumed
SHIFT_RATE = 50.0  # and shift in a clock, beside products, assumed
UNIT_TILE, UNIT_OUTPUTS = 128, 256  # positions and channels of a tile of the end of the unit
PRODUCTS_OUTPUTS = 128  # channels of a block of the reconstruction or the gradient of the features


@dataclass(frozen=True)
class Shape:
    """Features [batch, positions, channels] of 16 bits and T iterations."""

    batch: int
    positions: int
    channels: int = 512
    num_iters: int = 3

    @property
    def feature_bytes(self) -> float:
        return 2.0 * self.batch * self.positions * self.channels

    @property
    def responsibility_bytes(self) -> float:
        return 2.0 * self.batch * self.positions * BASES

    @property
    def slot_bytes(self) -> float:
        """Partial sums of one block, in float16 with a power of two for every 64 channels of a base."""
        return BASES * self.channels * (2 + 4 / 64)


def splits(shape: Shape) -> int:
    """Blocks of an image: as many as fill the device, and no more than there are tiles."""
    return max(1, min(-(-shape.positions // ROW), MULTIPROCESSORS // min(shape.batch, MULTIPROCESSORS)))


def launch(
    shape: Shape,
    products: int,
    from_memory: float,
    from_cache: float,
    blocks: int,
    issued: float = 0.0,
    wasted: float = 0.0,
    shared: float = 0.0,
) -> float:
    """Clocks of a kernel of `blocks` blocks at a time that does `products` products of [N, C, K] and moves bytes.

    Where warps bring the features, a scheduler issues `issued` instructions for 32 positions of 512 channels, those for
    the first ones before there is a product. L2 sends `wasted` bytes more, and does not send `shared` bytes again to a
    block that another one shares them with.
    """
    active = min(blocks, MULTIPROCESSORS)
    units = shape.batch * -(-shape.positions // ROW) / active
    arithmetic = units * products * 2 * ROW * shape.channels * BASES / PRODUCT_RATE + TAIL
    tile = issued * shape.channels / 512
    memory = from_memory / min(MEMORY_RATE, PORT_RATE * active)
    received = from_memory + from_cache + wasted
    cache, port = (received - shared) / CACHE_RATE, received / (PORT_RATE * active)
    return GAP + FILL + tile + max(arithmetic, units * ROW / 32 * tile, memory, cache, port)


def addition(shape: Shape) -> float:
    """Clocks until the slots of an iteration are written, added up and normalised."""
    blocks = shape.batch * splits(shape)
    results = 4.0 * BASES * shape.channels * shape.batch  # in float32, and rows of 16 bits, once or twice
    moved = 2 * blocks * shape.slot_bytes + 2 * results
    return GAP + FILL + moved / min(CACHE_RATE, PORT_RATE * min(blocks, MULTIPROCESSORS))


def again(features: float) -> tuple[float, float]:
    """Bytes of features read once more: from memory and from the cache."""
    cached = min(features, CACHE_BYTES)
    return features - cached, cached


def products(shape: Shape, count: int, blocks: int, *, pairs: bool = True) -> float:
    """Clocks of a sum of `count` products with bases.

    Every group of channels reads all responsibilities, `pairs` of an even number of groups together.
    """
    groups = -(-shape.channels // PRODUCTS_OUTPUTS)
    wanted = groups * count * shape.responsibility_bytes
    shared = wanted / 2 if pairs and groups % 2 == 0 else 0.0
    return launch(shape, count, shape.feature_bytes, wanted, blocks, shared=shared)


def forward(shape: Shape, *, aligned: bool = True, eight_bits: bool = False) -> dict[str, float]:
    """Microseconds of the parts of a forward pass.

    Not `aligned`: no boxes of the features can be copied. `eight_bits`: those of x, which warps widen.
    """
    blocks = shape.batch * splits(shape)
    x = shape.feature_bytes / (2 if eight_bits else 1)
    missed, cached = again(x)
    brought = (WIDEN if aligned else WIDEN_ANY) if eight_bits else SHIFT
    issued = 0.0 if aligned and not eight_bits else SOFTMAX + brought
    wasted = 0.0 if aligned else x * (WASTE_OF_8_BITS if eight_bits else WASTE)
    return _microseconds(
        {
            "first iteration": launch(shape, 2, x, 0, blocks, issued, wasted),
            "other iterations": (shape.num_iters - 1) * launch(shape, 2, missed, cached, blocks, issued, wasted),
            "normalisations": shape.num_iters * addition(shape),
            "reconstruction": products(shape, 1, blocks),
        }
    )


def backward(shape: Shape, *, aligned: bool = True) -> dict[str, float]:
    """Microseconds of the parts of an exact backward pass."""
    blocks = shape.batch * splits(shape)
    x, z = shape.feature_bytes, shape.responsibility_bytes
    missed, cached = again(x)
    # x and the gradient of y are read, products with the value rows are written in float32
    last = launch(shape, 3, 2 * x, 2 * z, blocks)
    if not aligned:  # x is copied, responsibilities are written and read
        last = launch(shape, 1, 2 * x, z, blocks, SOFTMAX + SHIFT, WASTE * x)
        last += launch(shape, 2, x, 3 * z, blocks, SHIFT, WASTE * x)
    return _microseconds(
        {
            "last responsibilities": last,
            "last iteration": launch(shape, 3, missed, cached + 4 * z, blocks),
            "other iterations": (shape.num_iters - 1) * launch(shape, 3, missed, cached + 2 * z, blocks),
            "normalisations": (shape.num_iters + 1) * addition(shape),
            "gradient of the features": products(shape, 2 * shape.num_iters, blocks),
        }
    )


def between_iterations(shape: Shape, together: bool) -> float:
    """Clocks from the partial sums of an iteration behind a folded convolution to the convolved bases of the next.

    Add the slots, sums through the convolution, normalise, bases through the convolution: in four launches, or
    `together` in one, where up to 8 splits are added as well.
    """
    blocks = min(MULTIPROCESSORS, shape.batch * -(-shape.channels // ROW))
    rate = min(CACHE_RATE, PORT_RATE * blocks)
    # a block reads 64 rows of bases and 64 of the weight
    convolution = shape.batch * shape.channels / ROW * 2 * ROW * 2 * shape.channels / rate
    normalisation = 2 * shape.batch * shape.slot_bytes / rate
    own_launch = GAP + FILL
    if not together:
        return addition(shape) + 3 * own_launch + 2 * convolution + normalisation
    adds = splits(shape) <= 8
    slots = 2 * shape.batch * splits(shape) * shape.slot_bytes / rate + FILL if adds else addition(shape)
    return slots + own_launch + 2 * FILL + 2 * convolution + normalisation


def end_of_unit(shape: Shape, cluster: int, aligned: bool = True) -> float:
    """Clocks from the last responsibilities to y; the blocks of a cluster read the weight and the bases once.

    Not `aligned`: a warp for 64 positions shifts x beside the products, and the threads that multiply store y.
    """
    groups = shape.batch * -(-shape.channels // UNIT_OUTPUTS)
    tiles = groups * -(-shape.positions // (cluster * UNIT_TILE))  # of a cluster
    turns = -(-tiles // (MULTIPROCESSORS // cluster))
    active = cluster * min(tiles, MULTIPROCESSORS // cluster)
    rebuilt, convolved = (2 * UNIT_TILE * shape.channels * width for width in (BASES, UNIT_OUTPUTS))
    loaded = 2 * (BASES + UNIT_OUTPUTS) * shape.channels * tiles
    others = 2 * shape.feature_bytes + 2 * shape.responsibility_bytes
    of_tile, result = (rebuilt + convolved) / PRODUCT_RATE, 2 * UNIT_TILE * UNIT_OUTPUTS
    if not aligned:
        of_tile = max(of_tile, 4 * result / SHIFT_RATE) + result / STORE_RATE
        others += WASTE * shape.feature_bytes
    arithmetic = turns * of_tile + TAIL
    memory = 2 * shape.feature_bytes / min(MEMORY_RATE, PORT_RATE * active)
    cache = (loaded + others) / CACHE_RATE
    port = (cluster * loaded + others) / (PORT_RATE * active)
    return GAP + FILL + max(arithmetic, memory, cache, port)


def unit(shape: Shape, *, aligned: bool = True, together: bool = True, pairs: bool = True) -> dict[str, float]:
    """Microseconds of the parts of the unit in evaluation; its end in `pairs` of blocks where that is faster."""
    loop = forward(shape, aligned=aligned)
    end = min(end_of_unit(shape, cluster, aligned) for cluster in ((1, 2) if pairs else (1,)))
    return {
        "iterations": loop["first iteration"] + loop["other iterations"],
        "between them": between_iterations(shape, together) * shape.num_iters / CLOCK * 1e6,
        "end": end / CLOCK * 1e6,
    }


def _microseconds(clocks: dict[str, float]) -> dict[str, float]:
    return {part: value / CLOCK * 1e6 for part, value in clocks.items()}


def main() -> None:
    """Print the table."""
    parts_of: dict[str, Callable[..., dict[str, float]]] = {
        "forward": forward,
        "forward of 8 bits": partial(forward, eight_bits=True),
        "backward": backward,
        "unit": unit,
    }
    for name, of in parts_of.items():
        for aligned in (True, False):
            for batch in (1, 8, 16):
                parts = of(Shape(batch, 65 * 65), aligned=aligned)
                listed = ", ".join(f"{part} {value:.1f}" for part, value in parts.items())
                order = "channels last" if aligned else "contiguous"
                print(f"{name} ({batch}, 65 x 65) {order}: {sum(parts.values()):.0f} us = {listed}")


if __name__ == "__main__":
    main()
