"""``lynx-render forget`` as a user meets it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lynx_parallel.ledger import Output
from lynx_parallel.subjects import SubjectCache, faces
from tests.small import tree
from tests.test_cli import light, lynx_render, refused

REST = "left for you to delete, with the .json and .latents.safetensors beside each"


def finish(folder: Path, name: str, subject: Any, shot: Any = None) -> Path:
    """A finished shot, as far as ``forget`` reads it."""
    output = Output(folder)
    output.path(name, "video").parent.mkdir(parents=True, exist_ok=True)
    for kind in ("video", "latents"):
        output.path(name, kind).write_bytes(b"x")
    sidecar = {
        "version": 1,
        "digests": {"latents": "a" * 64, "video": "b" * 64},
        "outputs": {}, "settings": {}, "encoding": {},
        "shot": {"subject": subject} if shot is None else shot,
    }  # fmt: skip
    output.path(name, "sidecar").write_text(json.dumps(sidecar))
    return output.path(name, "video")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SubjectCache:
    monkeypatch.setenv("LYNX_CACHE", str(tmp_path / "cache"))
    return SubjectCache()


@pytest.fixture
def folder(tmp_path: Path, cache: SubjectCache) -> Path:
    """Two outputs: ada in both, bob in one; and one of her earlier videos moved aside."""
    for number, (name, subject) in enumerate([("spring", "ada"), ("autumn", "ada"), ("spring", "bob")]):
        out = tmp_path / name
        finish(out, f"{subject}/walk-t01", subject)
        faces(out, subject).mkdir(parents=True)
        (faces(out, subject) / "id.png").write_bytes(b"png")
        cache.put(f"{number:064x}", {"x": np.zeros(9, np.float32)}, subject=subject, output=out)
    finish(tmp_path / "spring" / ".lynx" / "superseded" / "12345678", "ada/walk-t01", "ada")
    (tmp_path / "here").mkdir()
    return tmp_path


def test_forget(folder: Path, cache: SubjectCache) -> None:
    before = tree(folder)
    run = light("forget", "ada", cwd=folder / "here")
    assert (run.returncode, run.stderr) == (0, "")
    videos = [
        folder / "autumn" / "ada" / "walk-t01.mp4",
        folder / "spring" / "ada" / "walk-t01.mp4",
        folder / "spring" / ".lynx" / "superseded" / "12345678" / "ada" / "walk-t01.mp4",
    ]
    assert run.stdout.splitlines() == [
        "ada: cached face data removed",
        *map(str, videos),
        f"ada: videos that remain: 3, {REST}",
    ]
    after = tree(folder)
    gone = before.keys() - after.keys()
    assert sorted(path for path in gone if not path.startswith("cache/")) == [
        f"{name}/.lynx/faces/ada/id.png" for name in ("autumn", "spring")
    ]
    assert (
        sorted(Path(path).suffix for path in gone if path.startswith("cache/")) == [".json"] * 2 + [".safetensors"] * 2
    )
    assert all(before[path] == after[path] for path in after)
    assert cache.get(f"{2:064x}")
    assert faces(folder / "spring", "bob").exists()

    again = light("forget", "ada", cwd=folder / "here")
    assert (again.returncode, again.stdout) == (0, "ada: nothing was cached for this subject\n")


def test_unknown_and_known_subjects_together(folder: Path) -> None:
    run = light("forget", "eva", "bob", "eva", cwd=folder / "here")
    assert run.returncode == 0
    assert run.stdout.splitlines() == [
        "eva: nothing was cached for this subject",
        "bob: cached face data removed",
        str(folder / "spring" / "bob" / "walk-t01.mp4"),
        f"bob: videos that remain: 1, {REST}",
    ]


def test_nothing_was_ever_cached(tmp_path: Path, cache: SubjectCache) -> None:
    run = light("forget", "ada", cwd=tmp_path)
    assert (run.returncode, run.stdout, run.stderr) == (0, "ada: nothing was cached for this subject\n", "")
    assert os.listdir(tmp_path) == []


def test_no_videos(folder: Path, cache: SubjectCache) -> None:
    cache.put("c" * 64, {}, subject="eva", output=folder / "spring")
    run = light("forget", "eva", cwd=folder / "here")
    assert run.stdout.splitlines() == ["eva: cached face data removed", "eva: videos that remain: 0"]


def test_json(folder: Path) -> None:
    run = light("forget", "ada", "eva", "--json", cwd=folder / "here")
    assert run.returncode == 0
    videos = ["autumn/ada/walk-t01.mp4", "spring/ada/walk-t01.mp4", "spring/.lynx/superseded/12345678/ada/walk-t01.mp4"]
    assert json.loads(run.stdout) == {
        "subjects": [
            {
                "subject": "ada", "known": True, "outputs": [str(folder / "autumn"), str(folder / "spring")],
                "videos": [str(folder / video) for video in videos], "left": [],
            },
            {"subject": "eva", "known": False, "outputs": [], "videos": [], "left": []},
        ],
        "exit_code": 0,
    }  # fmt: skip


def test_a_video_that_was_deleted_by_hand(folder: Path) -> None:
    """Its latents still show the person: they are named in its stead."""
    (folder / "spring" / "bob" / "walk-t01.mp4").unlink()
    run = light("forget", "bob", cwd=folder / "here")
    assert str(folder / "spring" / "bob" / "walk-t01.latents.safetensors") in run.stdout.splitlines()


@pytest.mark.parametrize("shot", ["ada", ["ada"], {"subject": ["ada"]}, {}, 0])
def test_sidecars_that_say_nothing_of_a_subject(folder: Path, shot: Any) -> None:
    finish(folder / "spring", "odd", None, shot)
    run = light("forget", "ada", cwd=folder / "here")
    assert run.returncode == 0
    assert "odd" not in run.stdout


@pytest.mark.parametrize("wrong", ["../x", "", ".", "a/b", "ada\n", "é", "a" * 101])
def test_wrong_ids(folder: Path, wrong: str) -> None:
    everything = tree(folder)
    (line,) = refused("forget", "ada", wrong, cwd=folder / "here")
    assert line.startswith(f"{wrong!r}: an id is a letter or digit, then up to 99 ")
    assert tree(folder) == everything


def test_without_a_subject(tmp_path: Path) -> None:
    assert refused("forget", cwd=tmp_path)[-1].startswith("Error: Missing argument")


def test_a_cache_that_cannot_be_read_is_one_line(tmp_path: Path, cache: SubjectCache) -> None:
    """Never a false "nothing was cached"."""
    cache.root.parent.mkdir()
    cache.root.write_text("a file")
    run = lynx_render("forget", "ada", cwd=tmp_path)
    assert (run.returncode, run.stdout) == (3, "")
    assert run.stderr == f"{cache.root}: Not a directory\n"


def test_crops_that_cannot_be_removed(folder: Path, cache: SubjectCache) -> None:
    """Told, and exit 1. (Root removes what it likes; a folder in which another is mounted it cannot.)"""
    crops = faces(folder / "spring", "ada")
    mounted = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(crops)]
    if os.geteuid() == 0:
        if subprocess.run(mounted, capture_output=True, check=False).returncode:
            pytest.skip("nothing can be mounted here")
    else:
        crops.chmod(0o500)
    try:
        run = light("forget", "ada", cwd=folder / "here")
    finally:
        if os.geteuid() == 0:
            subprocess.run(["umount", str(crops)], check=True)
        else:
            crops.chmod(0o700)
    assert run.returncode == 1
    assert run.stderr.startswith(f"{crops}: cannot be removed: ")
    assert run.stdout.splitlines()[0] == "ada: cached face data removed, except what a warning names"
    assert not list(cache.root.glob(f"{0:064x}*.safetensors"))
    again = light("forget", "ada", cwd=folder / "here")
    assert again.returncode == 0
    assert not crops.exists()
