"""Fixtures of the tests of output folders."""

from __future__ import annotations

from tests.helpers.file_systems import elsewhere

__all__ = ["elsewhere"]
