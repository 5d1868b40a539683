"""Everything is in pyproject.toml; this file is where the compiled core will be built."""

from setuptools import setup

setup()
