"""Fixtures for all tests: a cache folder of the tests' own, the demo checkpoint, a copy of the demo campaign."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

REPOSITORY = Path(__file__).resolve().parents[1]

# A shell ignores SIGINT for what it starts in the background, and nohup ignores SIGHUP. Children inherit that, and
# tests send these signals to their children.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long way round goes first."""
    order = {"integration": 0, "chaos": 1}
    items.sort(key=lambda item: order.get(item.path.relative_to(REPOSITORY / "tests").parts[0], 2))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """For ``pytest -n 2``: the whole command on one worker, one run after the other; every other file on the next."""
    config.option.loadscopereorder = False
    return OneGroupAWorker(config, log)


class OneGroupAWorker(LoadScopeScheduling):
    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        return "integration" if "/integration/" in path else path


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """``LYNX_CACHE`` for this process and its children; the user's own cache is left alone."""
    folder = tmp_path_factory.mktemp("cache")
    before = os.environ.get("LYNX_CACHE")
    os.environ["LYNX_CACHE"] = str(folder)
    # A cluster the developer happens to be on must not be used by tests.
    address = os.environ.pop("RAY_ADDRESS", None)
    yield folder
    os.environ.pop("LYNX_CACHE")
    os.environ |= {"LYNX_CACHE": before} if before else {}
    os.environ |= {"RAY_ADDRESS": address} if address else {}


@pytest.fixture(scope="session")
def demo(cache: Path) -> Path:
    """``demo:tiny``, built once: ``wan/``, ``full/``, ``lite/``."""
    from lynx_parallel.demo.checkpoint import ensure_demo

    return ensure_demo()


@pytest.fixture
def campaign(tmp_path: Path, demo: Path) -> Path:
    """A copy of the demo campaign in a folder of its own; renders go to ``tmp_path / "renders" / "demo"``."""
    shutil.copytree(REPOSITORY / "manifests", tmp_path / "manifests")
    return tmp_path / "manifests" / "demo.yaml"
