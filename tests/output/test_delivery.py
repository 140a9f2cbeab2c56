"""Copies of finished videos for delivery: what is there stays, what is damaged is not delivered."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from pathlib import Path

import pytest

from lynx_parallel.errors import ClusterError
from lynx_parallel.output import delivery
from lynx_parallel.output.delivery import Delivery, Video
from lynx_parallel.output.made_files import one_at_a_time
from tests.helpers.campaigns import tree


def video(folder: Path, name: str, content: bytes = b"", **settings: object) -> Video:
    """A video with made-up content in ``<folder>/source``."""
    content = content or f"video of {name}".encode()
    source = folder / "source" / f"{name}.mp4"
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_bytes(content)
    facts = {"name": name, "seed": 42, "prompt_text": "ein „Kürbis“, orange", "settings": settings}
    return Video(source, f"to/{name}.mp4", len(content), hashlib.sha256(content).hexdigest(), facts)


def deliver(folder: Path, *videos: Video, link: bool = False) -> dict[str, str]:
    """Delivers what is not there yet. Returns the faults by name."""
    made = Delivery(folder / "delivery", link=link)
    present, conflicts = made.compare(videos)
    assert not conflicts
    with made.working(videos):
        faults = {one.file: made.add(one) for one in videos if one.file not in present}
        made.write_lists(one for one in videos if not faults.get(one.file))
    return {name: fault for name, fault in faults.items() if fault}


def rows(folder: Path) -> tuple[list[dict[str, str]], list[dict[str, object]]]:
    with (folder / "delivery" / "videos.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file)), json.loads((folder / "delivery" / "videos.json").read_text())["videos"]


@pytest.mark.parametrize("link", [False, True])
def test_copies_or_links_and_both_lists(tmp_path: Path, link: bool) -> None:
    one, two = (
        video(tmp_path, "a", **{"sampling.width": 64, "sampling.x": [1, 2], "dtype": "float32"}),
        video(tmp_path, "b", **{"video.crf": 18}),
    )
    assert not deliver(tmp_path, one, two, link=link)
    copy = tmp_path / "delivery" / "to" / "a.mp4"
    assert copy.read_bytes() == b"video of a"
    assert os.path.samefile(copy, one.source) == link
    table, full = rows(tmp_path)
    assert [row["file"] for row in full] == ["to/a.mp4", "to/b.mp4"]
    assert full[0] == {
        "file": "to/a.mp4", "sha256": one.sha256, "bytes": 10, "name": "a", "seed": 42,
        "prompt_text": "ein „Kürbis“, orange",
        "settings": {"sampling.width": 64, "sampling.x": [1, 2], "dtype": "float32"},
    }  # fmt: skip
    assert table[0]["prompt_text"] == "ein „Kürbis“, orange"
    assert [row["sampling.x"] for row in table] == ["[1, 2]", ""]
    assert [row["video.crf"] for row in table] == ["", "18"]
    assert "dtype" not in table[0]


def test_a_second_time_only_new_videos_are_added(tmp_path: Path) -> None:
    deliver(tmp_path, one := video(tmp_path, "a"))
    before = tree(tmp_path / "delivery")
    deliver(tmp_path, one)
    assert tree(tmp_path / "delivery") == before, "not even the lists are written again"
    deliver(tmp_path, two := video(tmp_path, "b"))
    assert [row["file"] for row in rows(tmp_path)[1]] == ["to/a.mp4", "to/b.mp4"]
    (tmp_path / "delivery" / "to" / "a.mp4").unlink()
    deliver(tmp_path, two)
    assert [row["file"] for row in rows(tmp_path)[0]] == ["to/b.mp4"]


def test_all_conflicts_are_found(tmp_path: Path) -> None:
    folder = tmp_path / "delivery"
    deliver(tmp_path, video(tmp_path, "a"))
    one, two, three = video(tmp_path, "a", b"video of z"), video(tmp_path, "b"), video(tmp_path, "c/d")
    (folder / "to" / "b.mp4").mkdir()
    (folder / "to" / "c").write_text("a file")
    (folder / "videos.csv").write_text("mine\n")
    before = tree(folder)
    present, conflicts = Delivery(folder).compare([one, two, three])
    assert not present
    assert {str(path.relative_to(folder)): reason for path, reason in conflicts.items()} == {
        "to/a.mp4": "is of an earlier export (seed 42) and differs now; remove it to get the new one",
        "to/b.mp4": "exists and is not a file",
        "to/c": "exists and is not a folder",
        "videos.csv": "exists and is not ours",
    }
    assert tree(folder) == before
    (folder / "videos.json").write_text("{}")
    assert Delivery(folder).compare([one])[1][folder / "to" / "a.mp4"].startswith("exists with other content")


@pytest.mark.parametrize("link", [False, True])
def test_a_damaged_video_is_not_delivered(tmp_path: Path, link: bool) -> None:
    good, bad, gone = video(tmp_path, "good"), video(tmp_path, "bad"), video(tmp_path, "gone")
    bad.source.write_bytes(b"video of bat")
    gone.source.unlink()
    assert deliver(tmp_path, bad, gone, good, link=link) == {
        "to/bad.mp4": "damaged: its content differs from the sidecar's checksum",
        "to/gone.mp4": "its video cannot be read: No such file or directory",
    }
    assert sorted(path.name for path in (tmp_path / "delivery" / "to").iterdir()) == ["good.mp4"]
    assert [row["file"] for row in rows(tmp_path)[1]] == ["to/good.mp4"]


def test_without_hard_links_files_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on another file system; a test cannot count on having two."""

    def refuse(*_: object) -> None:
        raise OSError(18, os.strerror(18))

    monkeypatch.setattr(delivery.os, "link", refuse)
    one = video(tmp_path, "a")
    made = Delivery(tmp_path / "delivery", link=True)
    with made.working([one]):
        assert made.add(one) == ""
    assert made.no_links == "Invalid cross-device link"
    assert not os.path.samefile(tmp_path / "delivery" / "to" / "a.mp4", one.source)


def test_what_a_killed_export_left_is_removed(tmp_path: Path) -> None:
    one = video(tmp_path, "a")
    folder = tmp_path / "delivery" / "to"
    folder.mkdir(parents=True)
    for name in ("a.mp4.123.part", "download.mp4.part", "b.mp4.7.part"):
        (folder / name).write_text("half")
    deliver(tmp_path, one)
    assert sorted(path.name for path in folder.iterdir()) == ["a.mp4", "b.mp4.7.part", "download.mp4.part"]


def test_one_export_at_a_time(tmp_path: Path) -> None:
    one = video(tmp_path, "a")
    (tmp_path / "delivery").mkdir()
    with one_at_a_time(tmp_path / "delivery"):
        made = Delivery(tmp_path / "delivery")
        with pytest.raises(ClusterError, match="another lynx-render writes here"), made.working([one]):
            pass
    assert not deliver(tmp_path, one)
