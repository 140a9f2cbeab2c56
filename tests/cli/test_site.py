"""Commands under a site file: consent and licences."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.finished import finished_campaign
from tests.helpers.light_command import light, refused


@pytest.fixture
def folder(tmp_path: Path, demo: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Finished shots of ``helpers.finished``, and a site file that requires consent."""
    finished_campaign(tmp_path)
    (tmp_path / "site.yaml").write_text("version: 1\nconsent: required\n")
    monkeypatch.setenv("LYNX_SITE", str(tmp_path / "site.yaml"))
    return tmp_path


def test_subjects_without_consent_are_blocked(folder: Path) -> None:
    """In the manifest, ada has consent and bob has none."""
    page = json.loads(light("plan", "m.yaml", "--json", cwd=folder).stdout)
    assert page["site"] == str(folder / "site.yaml")
    blocked = {row["name"].partition("/")[0]: row["reason"] for row in page["shots"] if row["action"] == "blocked"}
    assert blocked == {"bob": "subject bob: no consent; site.yaml requires it"}
    assert "site: site.yaml: consent required" in light("plan", "m.yaml", cwd=folder).stdout
    (folder / "site.yaml").write_text("version: 1\n")
    page = json.loads(light("plan", "m.yaml", "--json", cwd=folder).stdout)
    assert "blocked" not in {row["action"] for row in page["shots"]}


@pytest.mark.parametrize("target", ["m.yaml", "out"])
def test_their_videos_are_not_delivered(folder: Path, target: str) -> None:
    done = light("export", target, "--to", "copies", cwd=folder)
    assert "bob/walk-t01: left out: no consent; site.yaml requires it" in done.stdout
    copies = {path.name for path in (folder / "copies").rglob("*.mp4")}
    assert not any("bob" in name for name in copies)
    if target == "m.yaml":
        assert len(copies) == 2


def test_a_wrong_site_file_stops_all_work(folder: Path) -> None:
    (folder / "site.yaml").write_text("version: 1\nconsnt: required\n")
    assert refused("plan", "m.yaml", cwd=folder)[0].startswith(
        "site.yaml:2: consnt: unknown key; did you mean 'consent'?"
    )
    (folder / "site.yaml").unlink()
    assert refused("plan", "m.yaml", cwd=folder)[0].startswith("site.yaml: ")


def test_licences_are_checked_before_any_work(folder: Path) -> None:
    (folder / "site.yaml").write_text("version: 1\nlicences: commercial\n")
    assert light("plan", "m.yaml", cwd=folder).returncode == 0  # demo:tiny is Apache-2.0
    pipeline = (Path(__file__).parents[2] / "pipelines" / "demo-tiny.yaml").read_text()
    (folder / "own.yaml").write_text(pipeline.replace("demo:tiny", "demo:tiny", 1) + "\n")
    manifest = (folder / "m.yaml").read_text()
    (folder / "m.yaml").write_text(manifest + "quality: {recognizer: 'insightface:pack'}\n")
    (folder / "pack").mkdir()
    lines = refused("plan", "m.yaml", "--set", "sampling.seed=3", cwd=folder)
    assert "insightface:" in lines[0]
    assert "forbids commercial use; site.yaml asks for licences: commercial" in lines[0]
