"""What a rank does where its disk has no room."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lynx_parallel.errors import RenderError
from lynx_parallel.rank import disk_space
from lynx_parallel.rank.disk_space import when_room

FULL = [
    OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
    RenderError("cannot encode: ffmpeg ended with status 228: No space left on device"),
]


@pytest.mark.parametrize("error", FULL, ids=str)
def test_a_full_disk_is_waited_for(error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_space.time, "sleep", lambda seconds: None)
    outcomes, waits = iter([error, error]), list[str]()

    def write() -> None:
        if (outcome := next(outcomes, None)) is not None:
            raise outcome

    when_room(write, tmp_path / "a.mp4", waits.append)
    assert waits == [f"room on the disk of {tmp_path}"] * 2 + [""]


def test_not_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_space, "ROOM_WITHIN_S", -1.0)

    def write() -> None:
        raise FULL[0]

    with pytest.raises(RenderError, match=r"a\.mp4: no space left on the disk") as caught:
        when_room(write, tmp_path / "a.mp4", lambda what: None)
    assert caught.value.kind == "disk"


def test_what_waiting_does_not_cure(tmp_path: Path) -> None:
    with pytest.raises(RenderError, match="No such file or directory") as caught:
        when_room(lambda: (tmp_path / "no" / "a").touch(), tmp_path / "no" / "a", lambda what: None)
    assert caught.value.kind == "raised"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_log_on_a_full_disk_costs_lines_alone(tmp_path: Path) -> None:
    program = """
from pathlib import Path
from lynx_parallel.rank.logs import logged_to, write_log
with logged_to(Path("log")):
    write_log("one line")
with logged_to(Path("/dev/full")):
    write_log("lost")
print("after")
"""
    run = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (tmp_path / "log").read_text() == "one line\n"
    assert run.stdout.endswith("after\n")
