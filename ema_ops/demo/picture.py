"""The map of each basis over one picture, for which few packages are needed."""

from __future__ import annotations

from pathlib import Path

from . import attend, charts
from .page import Figure, write

NETWORK_FILE = "network.pt"
DEFAULT_OUT = Path("runs/demo")
MAP_CAPTION = (
    "Responsibility of each basis at every position, each map stretched from its lowest to its highest value, which "
    "stand above it. The basis with the largest share of the picture comes first."
)


def run_image(path: Path, out: Path, weights: Path | None) -> list[Path]:
    """Write `attention.png` and `attention.html` for one picture under `out`; returns both paths.

    `weights` is a network the demo wrote; None takes the one under `out` or `runs/demo` if there is one, and colour
    and position otherwise. Raises OSError and ValueError naming the file at fault.
    """
    picture = attend.load_picture(path)
    if weights is None:
        weights = next((p for p in (out / NETWORK_FILE, DEFAULT_OUT / NETWORK_FILE) if p.is_file()), None)
    if weights is None:
        maps = attend.maps_of_colours(picture)
        source = "No trained network found: the features are colour and position of every pixel."
    else:
        maps = attend.maps_of_network(attend.load_network(weights), picture)
        source = f"Features of the network the demo trained ({weights}); it has learnt digits on photographs."
    figure = Figure(charts.basis_maps(picture, maps), MAP_CAPTION)
    out.mkdir(parents=True, exist_ok=True)
    png, page = out / "attention.png", out / "attention.html"
    png.write_bytes(figure.png)
    size = f"shown at {picture.width} x {picture.height}"
    write(page, "attend.jinja", name=path.name, size=size, source=source, figure=figure)
    print(source)
    return [png, page]
