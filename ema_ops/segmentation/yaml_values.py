"""YAML as configs and options of the command line have it."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml


def parse_yaml(text: str) -> Any:
    """The value of `text`: YAML where 1e-3 is a number, and a key given twice is a mistake.

    Raises ValueError, in one line, when it is none.
    """
    try:
        return yaml.load(text, _Loader)
    # a date such as 2026-13-01 is a ValueError of Python's
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(" ".join(str(error).split())) from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            # a key such as [a] is refused below
            if isinstance(key, Hashable):
                if key in seen:
                    raise yaml.MarkedYAMLError(problem=f"{key} is given twice", problem_mark=key_node.start_mark)
                seen.add(key)
        return super().construct_mapping(node, deep)


# YAML 1.1 asks for a point in a number with an exponent
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)
