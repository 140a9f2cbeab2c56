"""The wheel is whole: installed elsewhere, away from the checkout, the demo's plan works."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import lynx_parallel
from tests.helpers.repository import REPOSITORY

pytestmark = pytest.mark.slow

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built without network: hatchling comes with the dev extra."""
    folder = tmp_path_factory.mktemp("dist")
    command = [*PIP, "wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", str(folder), str(REPOSITORY)]
    subprocess.run(command, check=True, cwd=folder)
    (made,) = folder.iterdir()
    assert made.name == f"lynx_parallel-{lynx_parallel.__version__}-py3-none-any.whl"
    return made


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with this package alone; what it needs comes from this Python's own packages."""
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([*PIP, "install", "--no-deps", "--no-index", "--target", str(folder), str(wheel)], check=True)
    return folder


def python(*arguments: str, cwd: Path, installed: Path) -> str:
    """stdout of Python with the installed folder before everything else."""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_is_inside(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        found = {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}
    shipped = {
        f"lynx_parallel/_shipped/{path.relative_to(REPOSITORY).as_posix()}": path.read_bytes()
        for kind in ("pipelines", "manifests", "schemas")
        for path in (REPOSITORY / kind).rglob("*")
        if path.is_file()
    }
    page = "docs/troubleshooting.md"
    shipped[f"lynx_parallel/_shipped/{page}"] = (REPOSITORY / page).read_bytes()
    assert len(shipped) >= 10
    modules = {
        path.relative_to(REPOSITORY).as_posix(): path.read_bytes()
        for path in (REPOSITORY / "lynx_parallel").rglob("*")
        if path.suffix in (".py", ".typed", ".html")
    }
    information = {name for name in found if name.startswith(f"lynx_parallel-{lynx_parallel.__version__}.dist-info/")}
    assert {name: content for name, content in found.items() if name not in information} == {**shipped, **modules}
    assert any(name.endswith("/LICENSE") for name in information)
    (entry_points,) = (found[name] for name in information if name.endswith("/entry_points.txt"))
    assert b"lynx-render = lynx_parallel.cli:main" in entry_points


def test_the_demo_from_an_empty_folder(installed: Path, tmp_path: Path, demo: Path) -> None:
    where = python("-c", "import lynx_parallel; print(lynx_parallel.__file__)", cwd=tmp_path, installed=installed)
    assert where.strip() == str(installed / "lynx_parallel" / "__init__.py")

    planned = python("-m", "lynx_parallel.cli", "plan", "demo", cwd=tmp_path, installed=installed)
    assert planned.startswith("demo.yaml: 4 shots: 4 to render, 0 to encode, 0 done, 0 blocked\n")
    as_json = python("-m", "lynx_parallel.cli", "plan", "demo", "--json", cwd=tmp_path, installed=installed)
    assert f'"output": "{tmp_path}/renders/demo"' in as_json
    assert os.listdir(tmp_path) == []


def test_errors_are_explained_without_the_repository(installed: Path, tmp_path: Path) -> None:
    explained = python("-m", "lynx_parallel.cli", "help", "LX202", cwd=tmp_path, installed=installed)
    assert explained.startswith("LX202: **Another run works in this output folder.**")


def test_every_shipped_file_loads_there(installed: Path, tmp_path: Path) -> None:
    code = (
        "from lynx_parallel.inputs.shipped import shipped_dir, shipped_names\n"
        "from lynx_parallel.inputs.load import load_campaign\n"
        "from lynx_parallel.inputs.pipeline_files import load_pipeline\n"
        "for name in shipped_names('pipelines'): load_pipeline(name); print(name)\n"
        'people = [f\'subjects={shipped_dir("manifests") / "faces"}\']\n'
        "for name in shipped_names('manifests'):\n"
        "    load_campaign(name, people if name == 'benchmark' else []); print(name)\n"
    )
    names = [
        name
        for kind in ("pipelines", "manifests")
        for name in sorted(p.stem for p in (REPOSITORY / kind).glob("*.yaml"))
    ]
    assert python("-c", code, cwd=tmp_path, installed=installed).split() == names
