"""Videos and pictures by the patterns of ``score --videos --faces``."""

from __future__ import annotations

from pathlib import Path

import pytest

from lynx_parallel.errors import InputErrors
from lynx_parallel.inputs.video_patterns import find_videos

FILES = ["clips/ada_walk.mp4", "clips/ada_two words.mp4", "clips/bob_walk.webm", "clips/deep/eve_run.mp4",
         "clips/[x]_a.mp4", "faces/ada.jpg", "faces/eve.png", "faces/bob.txt", "faces/[x].jpg"]  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("videos", "faces", "expected"),
    [
        ("clips/{subject}_{prompt}.mp4", "faces/{subject}.*",
         {"ada_walk.mp4": "ada.jpg", "ada_two words.mp4": "ada.jpg", "[x]_a.mp4": "[x].jpg"}),
        ("clips/{subject}_*.*", "faces/{subject}.*",
         {"ada_walk.mp4": "ada.jpg", "ada_two words.mp4": "ada.jpg", "bob_walk.webm": None, "[x]_a.mp4": "[x].jpg"}),
        ("clips/**/{who}_run.mp4", "faces/{who}.png", {"eve_run.mp4": "eve.png"}),
        ("clips/{subject}_walk.mp4", "faces/eve.png", {"ada_walk.mp4": "eve.png"}),
        ("clips/ada_walk.mp4", "faces/ada.jpg", {"ada_walk.mp4": "ada.jpg"}),
        ("clips/a?a_walk.mp4", "faces/ada.jpg", {"ada_walk.mp4": "ada.jpg"}),
    ],
)  # fmt: skip
def test_pairs(folder: Path, videos: str, faces: str, expected: dict[str, str | None]) -> None:
    found = find_videos(videos, faces)
    assert {one.path.name: one.picture and one.picture.name for one in found} == expected
    assert [one.path for one in found] == sorted(one.path for one in found)


def test_mistakes(folder: Path) -> None:
    with pytest.raises(InputErrors, match="no file fits"):
        find_videos("clips/*.avi", "faces/{subject}.*".replace("{subject}", "ada"))
    with pytest.raises(InputErrors, match=r"\{who\}: no such field in --videos \(fields: subject\)"):
        find_videos("clips/{subject}_*.mp4", "faces/{who}.jpg")
