"""A folder with the files a small manifest needs, and ways to load texts as manifests there."""

from __future__ import annotations

from pathlib import Path

import pytest

from lynx_parallel.errors import InputErrors
from lynx_parallel.inputs.load import load_campaign
from lynx_parallel.inputs.manifest import Campaign
from tests.helpers.json_schemas import schema_mistakes
from tests.helpers.manifests import LITE, Complain, Load


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working folder: lite.yaml (no pixels needed), faces ada and bob with embeddings."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lite.yaml").write_text(LITE)
    faces = tmp_path / "faces"
    faces.mkdir()
    for name in ("ada", "bob"):
        (faces / f"{name}.jpg").write_bytes(b"jpg")
        (faces / f"{name}.npy").write_bytes(b"npy")
    return tmp_path


@pytest.fixture
def load(folder: Path) -> Load:
    """``load(text, overrides=(), only=())`` writes m.yaml and loads it. The schema must accept it, too."""

    def run(text: str, **options: object) -> Campaign:
        (folder / "m.yaml").write_text(text)
        campaign = load_campaign("m.yaml", **options)  # type: ignore[arg-type]
        assert schema_mistakes("manifest", folder / "m.yaml") == []
        return campaign

    return run


@pytest.fixture
def complain(load: Load) -> Complain:
    """Like ``load`` for a wrong manifest: the error's lines."""

    def run(text: str, **options: object) -> list[str]:
        with pytest.raises(InputErrors) as caught:
            load(text, **options)
        assert all("\n" not in line for line in caught.value.lines)
        return caught.value.lines

    return run
