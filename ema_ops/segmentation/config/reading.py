"""From YAML to one frozen `Config`, every mistake named by its key."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from ..yaml_values import parse_yaml
from .sections import Config

RECIPES = Path(__file__).parents[1] / "recipes"
"""The folder of the recipes, `NAME.yaml` each."""


def recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_config(source: str | Path, sets: Iterable[str] = ()) -> Config:
    """The config in a YAML file or the recipe of that name, with changes such as "optimizer.lr=0.01" made to it.

    Raises:
        FileNotFoundError: `source` is neither a file nor a recipe.
        ValueError: it is no YAML mapping, or a key or value does not fit. One line for each mistake, with the key, the
            value and what was expected.
    """
    path = _find(source)
    content = _read(path)
    for text in sets:
        _set(content, text)
    try:
        return Config.model_validate(content)
    except ValidationError as error:
        lines = [_explained(detail) for detail in error.errors()]
        raise ValueError("\n".join(f"config {path}: {line}" for line in lines)) from None


def _find(source: str | Path) -> Path:
    path = Path(source)
    if path.is_file():
        return path
    if str(source) in recipes():
        return RECIPES / f"{source}.yaml"
    raise FileNotFoundError(f"config {source} is neither a file nor a recipe: expected one of {', '.join(recipes())}")


def _read(path: Path) -> dict[str, Any]:
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"config {path} is not YAML: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"config {path} holds {content!r}: expected a mapping with the sections {_names(Config)}")
    return content


def _set(content: dict[str, Any], text: str) -> None:
    """Make the change `text`, "section.key=value", to `content`."""
    key, separator, value = text.partition("=")
    *sections, name = key.strip().split(".")
    if not (separator and name and all(sections)):
        raise ValueError(f"--set {text}: expected KEY=VALUE such as optimizer.lr=0.01")
    for depth, section in enumerate(sections, start=1):
        content = content.setdefault(section, {})
        if not isinstance(content, dict):
            raise ValueError(f"--set {text}: {'.'.join(sections[:depth])} is {content!r}, expected a section")
    try:
        content[name] = parse_yaml(value)
    except ValueError:
        raise ValueError(f"--set {text}: {value!r} is not a YAML value") from None


def _explained(detail: Mapping[str, Any]) -> str:
    """One mistake that pydantic found, in one line."""
    key, kind, message = ".".join(map(str, detail["loc"])), detail["type"], detail["msg"]
    if kind == "value_error":
        return f"{key}.{detail['ctx']['error']}" if key else str(detail["ctx"]["error"])
    if kind == "extra_forbidden":
        return f"{key} is not a setting: expected one of {_names(_section(detail['loc'][:-1]))}"
    if kind == "missing":
        return f"{key} is missing: expected a value"
    if kind == "model_type":
        return f"{key} is {detail['input']!r}: expected a section with {_names(_section(detail['loc']))}"
    expected = message.removeprefix("Input should be ")
    return f"{key} is {detail['input']!r}: {message if expected == message else f'expected {expected}'}"


def _section(keys: Iterable[str]) -> type[BaseModel]:
    section: Any = Config
    for key in keys:
        annotation = section.model_fields[key].annotation
        # the section itself, or the first of "Section | None"
        section = next(iter(get_args(annotation)), annotation)
    return section


def _names(section: type[BaseModel]) -> str:
    return ", ".join(section.model_fields)
