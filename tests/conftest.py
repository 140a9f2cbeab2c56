"""Fixtures and settings of all tests: an environment of their own, the demo checkpoint, a copy of the demo campaign.

The folder of a test decides its markers, see ``MARKERS``. ``make quick`` runs the tests without a marker.
"""

from __future__ import annotations

import gc
import os
import resource
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

from tests.helpers.repository import REPOSITORY

MARKERS = {
    "benchmarks": ("slow",),
    "cli": ("slow",),
    "cluster": ("slow",),
    "demo": ("slow",),
    "distributed": ("gang",),
    "doctor": ("slow",),
    "fetch": ("slow",),
    "forked": ("gang", "slow"),
    "fuzz": ("slow",),
    "golden": ("slow",),
    "gpu": ("gpu",),
    "gpu_dry_run": ("slow",),
    "integration": ("ray",),
    "parallel": ("slow",),
    "parity": ("slow",),
    "pipeline": ("slow",),
    "rank": ("slow",),
    "upstream": ("slow",),
}
"""Markers of the tests in a folder. Within any other folder, tests in ``slow/`` are marked slow."""
RAY = ("integration",)
"""Folders of tests that start Ray."""
FIRST = (*RAY, "forked", "rank", "stages")
"""Folders whose tests take longest. They start first, so that all workers end at about the same time."""
WAITING = ("test_two_hosts.py", "test_starting.py", "test_stopping.py")
"""Tests in them that wait most of their time."""


def _set_environment() -> None:
    """Gives tests and their children signals, limits and variables that do not depend on who started pytest.

    A shell ignores SIGINT for processes in the background, nohup ignores SIGHUP, and children inherit that. Tests send
    these signals to their children.
    """
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1})
    os.umask(0o022)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < 4096:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard) if hard >= 0 else 4096, hard))
    own = ("LYNX_", "RAY_", "HF_", "HUGGINGFACE_", "TRANSFORMERS_", "XDG_", "IMAGEIO_", "NCCL_", "GLOO_", "TORCH")
    for name in [name for name in os.environ if name.startswith(own)]:
        if name != "LYNX_GPU_DRY_RUN":
            del os.environ[name]
    for name in ("NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE", "COLUMNS", "LINES", "PYTHONSAFEPATH", "LC_ALL"):
        os.environ.pop(name, None)
    # Idle OpenMP threads must not spin: other tests need the cores.
    os.environ |= {"LANG": "C.UTF-8", "TERM": "xterm", "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    # glibc then asks for huge pages: the many tensors of a test otherwise fault in a page at a time.
    os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
    os.environ.setdefault("PATH", os.defpath)


gc.disable()  # until all tests are collected: imports make a million objects and no garbage
_set_environment()
settings.register_profile("patient", deadline=None)
settings.register_profile("full", deadline=None, max_examples=400)
settings.load_profile("patient")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Adds the markers of each folder, and moves the longest tests to the front."""
    for item in items:
        for marker in (*MARKERS.get(_folder(item), ()), *(["slow"] if item.path.parent.name == "slow" else [])):
            item.add_marker(getattr(pytest.mark, marker))
    items.sort(key=lambda item: FIRST.index(_folder(item)) if _folder(item) in FIRST else len(FIRST))


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def _folder(item: pytest.Item) -> str:
    return item.path.relative_to(REPOSITORY / "tests").parts[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """For ``pytest -n 3``: tests that start Ray run on two workers, other files on any worker.

    One of the two workers gets the tests that mostly wait, for example for a lost connection. Three runs with two ranks
    each at once would compete for the cores of a small machine, and take longer than one after the other.
    """
    config.option.loadscopereorder = False
    return TwoWorkersForRay(config, log)


class TwoWorkersForRay(LoadScopeScheduling):
    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        if path.split("/")[1] not in RAY:
            return path
        return "ray, waiting" if path.rpartition("/")[2] in WAITING else "ray, working"


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``LYNX_CACHE`` and the home folder of this process and its children. The user's own are not touched."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["LYNX_CACHE"] = str(folder)
    os.environ["HOME"] = str(tmp_path_factory.mktemp("home"))
    return folder


@pytest.fixture(scope="module", autouse=True)
def torch_settings() -> None:
    """Another number of threads rounds differently. Ranks that earlier tests ran in this process may have set one."""
    if torch := sys.modules.get("torch"):
        from tests.helpers.small_convolutions import use_onednn

        torch.set_num_threads(1)
        use_onednn()


@pytest.fixture(autouse=True)
def no_ray_in_quick_tests(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test without the marker ``ray`` that has started Ray."""
    yield
    if request.node.get_closest_marker("ray") is None:
        ray = sys.modules.get("ray")
        assert ray is None or not getattr(ray, "is_initialized", bool)(), "this test belongs into tests/integration"


@pytest.fixture(scope="session")
def demo(cache: Path) -> Path:
    """``demo:tiny``, built once: ``wan/``, ``full/``, ``lite/``."""
    from lynx_parallel.demo.checkpoint import ensure_demo
    from tests.helpers.small_convolutions import use_onednn

    use_onednn()  # perhaps torch is imported only now
    return ensure_demo()


@pytest.fixture
def campaign(tmp_path: Path, demo: Path) -> Path:
    """A copy of the demo campaign in a folder of its own. Renders go to ``tmp_path / "renders" / "demo"``."""
    shutil.copytree(REPOSITORY / "manifests", tmp_path / "manifests")
    return tmp_path / "manifests" / "demo.yaml"


@pytest.fixture
def fast_disk() -> Iterator[Path]:
    """A folder in memory. Saving a resume state takes at most 2 % of a run, which a slow disk soon exceeds."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def campaign_of(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Any]:
    """A function that loads the campaign of ``helpers.fake_gangs`` with another output folder."""
    import numpy as np

    from lynx_parallel.inputs.load import load_campaign
    from tests.helpers.fake_gangs import MANIFEST

    folder = tmp_path_factory.mktemp("campaign")
    shutil.copytree(REPOSITORY / "manifests" / "faces", folder / "faces")

    def load(output: Path) -> Any:
        for number, subject in enumerate("ab", start=1):
            np.save(folder / f"{subject}.npy", np.full(512, number, np.float32))
        (folder / "manifest.yaml").write_text(MANIFEST.format(output=output))
        return load_campaign(str(folder / "manifest.yaml"))

    return load
