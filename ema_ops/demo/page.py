"""A report as one HTML file that holds everything, pictures included."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Figure:
    """One picture of the report: PNG bytes and what it shows."""

    png: bytes
    caption: str

    @property
    def uri(self) -> str:
        """The picture as a data URI."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


def write(path: Path, template: str, templates: Path = HERE, **content: Any) -> None:
    """Fill `template`, a file in `templates` that may include those beside this module, and write it to `path`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([templates, HERE]), autoescape=True, undefined=jinja2.StrictUndefined
    )
    path.write_text(environment.get_template(template).render(**content), encoding="utf-8")
