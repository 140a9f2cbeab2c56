"""``--metrics-file`` of runs that do not begin, and paths that cannot be written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from lynx_parallel.cli.load import load as load_all
from tests.helpers.campaigns import draw, finish, write
from tests.helpers.light_command import light, refused
from tests.helpers.ray_head import free_ports


@pytest.fixture
def folder(tmp_path: Path, demo: Path) -> Path:
    write(tmp_path)
    draw(tmp_path)
    return tmp_path


def render_all_but(folder: Path, left: int) -> None:
    loaded = load_all(str(folder / "m.yaml"), None, None, False)
    shots = loaded.campaign.shots
    for shot in shots[: len(shots) - left]:
        finish(loaded.campaign, shot, weights=loaded.parts[0].digests)


def values(path: Path) -> dict[str, float]:
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(path.read_text()):
        for sample in family.samples:
            assert sample.labels["output"] == str(path.parent / "out")
            found["/".join([sample.name, *(v for k, v in sorted(sample.labels.items()) if k == "state")])] = (
                sample.value
            )
    return found


def test_nothing_to_do(folder: Path) -> None:
    render_all_but(folder, 0)
    done = light("m.yaml", "--metrics-file", "lynx.prom", "--no-report", cwd=folder)
    assert done.returncode == 0, done.stderr
    found = values(folder / "lynx.prom")
    assert found["lynx_run_exit_code"] == 0
    assert (found["lynx_shots/done"], found["lynx_shots/left"], found["lynx_run_done_ratio"]) == (4, 0, 1)
    assert found["lynx_shots_rendered_total"] == 0


def test_a_cluster_that_does_not_answer(folder: Path) -> None:
    """The counts are those of the files."""
    render_all_but(folder, 1)
    [port] = free_ports(1)
    address = f"127.0.0.1:{port}"
    done = light("m.yaml", "--metrics-file", "lynx.prom", "--address", address, cwd=folder, allowed="ray numpy")
    assert done.returncode == 3, done.stderr
    found = values(folder / "lynx.prom")
    assert found["lynx_run_exit_code"] == 3
    assert (found["lynx_shots/done"], found["lynx_shots/left"], found["lynx_run_done_ratio"]) == (3, 1, 0)


@pytest.mark.parametrize(
    ("file", "reason"),
    [("none/lynx.prom", "No such file or directory"), (".", "not a regular file"), ("/dev/null", "not a regular file")],
)
def test_a_path_that_cannot_be_written_is_a_line(folder: Path, file: str, reason: str) -> None:
    """Before the weights are looked for, which may be a download of 70 GB."""
    (folder / "full.yaml").unlink()
    assert refused("m.yaml", "--metrics-file", file, cwd=folder) == [f"--metrics-file {file}: {reason}"]


def test_bad_input_leaves_the_file(folder: Path) -> None:
    (folder / "lynx.prom").write_text("old")
    (folder / "full.yaml").unlink()
    assert light("m.yaml", "--metrics-file", "lynx.prom", cwd=folder).returncode == 2
    assert (folder / "lynx.prom").read_text() == "old"
    assert not [name for name in os.listdir(folder) if name.endswith((".part", ".probe"))]
