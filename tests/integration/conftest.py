"""A running Ray for tests of what happens after Ray has started, without the dashboard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.ray_head import Head, ray_head


@pytest.fixture(scope="session")
def head(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    with ray_head(tmp_path_factory.mktemp("home"), dashboard=False) as head:
        yield head
