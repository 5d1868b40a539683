"""Everything is in pyproject.toml but the compiled core, which the folder `building` adds."""

from setuptools import setup

from building.commands import setup_arguments

setup(**setup_arguments())
