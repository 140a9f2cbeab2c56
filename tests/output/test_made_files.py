"""Records of files that a command makes: what is done, what is left, what is not ours."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from lynx_parallel.errors import ClusterError
from lynx_parallel.output import made_files
from lynx_parallel.output.made_files import MadeFiles, Source

FILE = "ada/walk.mp4"
ONE = Source("1" * 64, {"command": ["upscale", "{in}", "{out}"]})
NEW_INPUT = Source("2" * 64, ONE.how)
OTHER_WAY = Source(ONE.input, {"command": ["sound", "{in}", "{out}"]})


@pytest.fixture
def made(tmp_path: Path) -> MadeFiles:
    return MadeFiles(tmp_path / "to")


def make(made: MadeFiles, source: Source = ONE, content: str = "made", *, folder: bool = False) -> None:
    part = made.part(FILE)
    if folder:
        (part / "deep").mkdir(parents=True)
        (part / "deep" / "0001.png").write_text(content)
        (part / "0002.png").write_text(content)
    else:
        part.write_text(content)
    made.publish(part, FILE, source)


@pytest.mark.parametrize("folder", [False, True])
def test_the_states_of_a_file(made: MadeFiles, folder: bool) -> None:
    assert made.state(FILE, ONE) == "left"
    with made.working():
        make(made, folder=folder)
    assert [made.state(FILE, source) for source in (ONE, NEW_INPUT, OTHER_WAY)] == ["done", "left", "other"]
    with made.working():
        make(made, NEW_INPUT, "new", folder=folder)
    assert [made.state(FILE, source) for source in (ONE, NEW_INPUT)] == ["left", "done"]
    content = made.path(FILE) / "0002.png" if folder else made.path(FILE)
    assert content.read_text() == "new"
    os.utime(content)
    assert made.state(FILE, NEW_INPUT) == "done", "a time alone is no change"
    content.write_text("mine")
    assert {made.state(FILE, source) for source in (ONE, NEW_INPUT, OTHER_WAY)} == {"foreign"}
    assert not (made.private / "parts").exists()


def test_a_file_of_somebody_else(made: MadeFiles) -> None:
    made.path(FILE).parent.mkdir(parents=True)
    made.path(FILE).write_text("mine")
    assert made.state(FILE, ONE) == "foreign"
    with made.working(), pytest.raises(FileExistsError, match="it is not replaced"):
        make(made)
    assert made.path(FILE).read_text() == "mine"
    assert made.state(FILE, ONE) == "foreign"


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"version": 2}', "\0", '{"version": 1, "input": 1, "how": 2}'])
def test_a_record_that_cannot_be_read_protects_the_file(made: MadeFiles, content: str) -> None:
    with made.working():
        make(made)
    [record] = (made.private / "records").rglob("*.json")
    record.write_text(content)
    assert made.state(FILE, ONE) == "foreign"


@pytest.mark.parametrize("folder", [False, True])
@pytest.mark.parametrize("before", [False, True])
def test_a_crash_between_the_record_and_the_file(
    made: MadeFiles, monkeypatch: pytest.MonkeyPatch, before: bool, folder: bool
) -> None:
    """The file is to be made again, and an older one is still known to be ours."""

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    if before:
        with made.working():
            make(made, content="old", folder=folder)
    monkeypatch.setattr(made_files, "publish_folder" if folder else "publish", crash)
    with pytest.raises(KeyboardInterrupt), made.working():
        make(made, NEW_INPUT, "new", folder=folder)
    monkeypatch.undo()
    assert made.state(FILE, NEW_INPUT) == "left"
    with made.working():
        make(made, NEW_INPUT, "new", folder=folder)
    assert made.state(FILE, NEW_INPUT) == "done"


def test_what_a_killed_run_left_is_removed_at_the_next_start(made: MadeFiles) -> None:
    with made.working():
        part = made.part(FILE)
        part.write_text("half")
        assert part.name == "walk.mp4", "tools look at the suffix"
        (made.private / "parts").rename(made.folder / "kept")  # as if killed: the end of the block removes nothing
    (made.folder / "kept").rename(made.private / "parts")
    with made.working():
        assert not any((made.private / "parts").rglob("*"))
    assert made.state(FILE, ONE) == "left"


def test_one_process_at_a_time(made: MadeFiles) -> None:
    other = MadeFiles(made.folder)
    with made.working(), pytest.raises(ClusterError, match="another lynx-render writes here"), other.working():
        pass
    with made.working():
        make(made)
    [record] = (made.private / "records").rglob("*.json")
    assert json.loads(record.read_text())["how"] == ONE.how
