"""Output folders on several file systems, and on ones that cannot do everything."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest

import lynx_parallel.output.atomic
from lynx_parallel.engine.campaign_run import CampaignRun
from lynx_parallel.inputs.manifest import Campaign
from lynx_parallel.output.atomic import atomic_write, move, part_path, publish, try_publishing
from lynx_parallel.output.folder import Output
from lynx_parallel.output.journal import Journal
from lynx_parallel.plan.plan import make_plan
from tests.helpers.campaigns import MANIFEST, WEIGHTS, contents, finish, load, write
from tests.helpers.repository import REPOSITORY

ADA = "ada/walk-t01"
ALL = ("video", "sidecar", "latents")
TODAY = date(2026, 1, 1)


@pytest.fixture
def campaign(tmp_path: Path) -> Campaign:
    write(tmp_path)
    return load(tmp_path)


def files(folder: Path) -> dict[str, bytes]:
    """Content of every file below a folder; links to folders are followed."""
    found = {}
    for root, _, names in os.walk(folder, followlinks=True):
        for name in names:
            path = Path(root) / name
            found[str(path.relative_to(folder))] = path.read_bytes()
    return found


def link(path: Path, target: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


@pytest.mark.parametrize("linked", ["ada", ".lynx/superseded", ".lynx"])
def test_old_files_move_to_another_file_system(
    tmp_path: Path, campaign: Campaign, elsewhere: Path, linked: str
) -> None:
    link(campaign.output / linked, elsewhere)
    output = Output(campaign.output)
    finish(campaign, campaign.shots[0])
    video = os.urandom(5 * 2**20)
    output.path(ADA, "video").write_bytes(video)
    old = {path.name: path.read_bytes() for path in (campaign.output / "ada").iterdir()}
    newer = load(tmp_path, MANIFEST, "sampling.seed=7")
    with output.probe_shot(ADA, stale=True) as probe:
        assert probe.exists()
    output.supersede(ADA, ALL)
    assert not output.has_files(ADA)
    finish(newer, newer.shots[0], word=" new")
    found = files(output.folder)
    [folder] = (output.private / "superseded").iterdir()
    assert {path.name: path.read_bytes() for path in (folder / "ada").iterdir()} == old
    assert found[f"{ADA}.mp4"] == contents(newer.shots[0], " new")["video"]
    assert not [name for name in found if "part" in name or "probe" in name]
    [item] = [item for item in make_plan(newer, WEIGHTS, today=TODAY).items if item.shot.name == ADA]
    assert item.action == "done"


@pytest.mark.parametrize("call", ["chmod", "utime"])
def test_the_other_file_system_may_refuse_modes_and_times(
    tmp_path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """As vfat and some network shares do."""

    def refuse(path: Any, *_: Any, **__: Any) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(path))

    monkeypatch.setattr(os, call, refuse)
    (tmp_path / "a.mp4").write_bytes(b"video")
    move(tmp_path / "a.mp4", elsewhere / "a.mp4")
    assert files(elsewhere) == {"a.mp4": b"video"}
    assert not (tmp_path / "a.mp4").exists()


class Crash(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("moment", ["half copied", "before the rename", "before the source is removed"])
def test_a_crash_between_two_file_systems(
    tmp_path: Path, elsewhere: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    source, target = tmp_path / "a.mp4", elsewhere / "a.mp4"
    content = os.urandom(3 * 2**20)
    source.write_bytes(content)

    def crash(*_: Any, **__: Any) -> None:
        raise Crash

    def half(source: Path, part: Path) -> None:
        part.write_bytes(content[: len(content) // 2])
        raise Crash

    real = Path.unlink
    with monkeypatch.context() as patch:
        if moment == "half copied":
            patch.setattr(lynx_parallel.output.atomic.shutil, "copyfile", half)
        elif moment == "before the rename":
            patch.setattr(lynx_parallel.output.atomic, "_fsync", crash)
        else:
            patch.setattr(Path, "unlink", lambda path, **k: crash() if path == source else real(path, **k))
        with pytest.raises(Crash):
            move(source, target)
    whole = [path for path in (source, target) if path.exists()]
    assert whole
    assert {path.read_bytes() for path in whole} == {content}
    move(source, target)
    assert (source.exists(), target.read_bytes()) == (False, content)


def test_links_and_folders_move_as_they_are(tmp_path: Path, elsewhere: Path) -> None:
    """Somebody may have put one in the place of a video."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes").write_text("mine")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("folder", "link"):
        move(tmp_path / name, elsewhere / name)
        assert not os.path.lexists(tmp_path / name)
    assert (elsewhere / "folder" / "notes").read_text() == "mine"
    assert (elsewhere / "link").readlink() == Path("nowhere")


def test_linked_folders_are_swept_and_listed(campaign: Campaign, elsewhere: Path, tmp_path: Path) -> None:
    """But only those of our shots: another link may lead anywhere."""
    output = Output(campaign.output)
    link(output.folder / "ada", elsewhere)
    (tmp_path / "large").mkdir()
    link(output.folder / "data", tmp_path / "large")
    link(elsewhere / "loop", elsewhere)
    finish(campaign, campaign.shots[0])
    (elsewhere / "run-t01.json").write_bytes((elsewhere / "walk-t01.json").read_bytes())
    (elsewhere / "walk-t01.mp4.1.part").write_text("half")
    (tmp_path / "large" / "walk-t01.json").write_bytes((elsewhere / "walk-t01.json").read_bytes())
    assert [name for name, _ in output.sidecars(but={ADA})] == ["ada/run-t01"]
    Journal(output.journal).append("attempt", name=ADA)
    assert output.sweep({ADA}) == 1
    assert not (elsewhere / "walk-t01.mp4.1.part").exists()


def test_a_probe_fails_where_moving_aside_would(campaign: Campaign) -> None:
    output = Output(campaign.output)
    finish(campaign, campaign.shots[0])
    before = files(output.folder)
    (output.private).mkdir()
    (output.private / "superseded").write_text("a file in the folder's place")
    with output.probe_shot(ADA, stale=False):
        pass

    def probe() -> None:
        with output.probe_shot(ADA, stale=True):
            pass

    with pytest.raises(OSError, match="superseded"):
        probe()
    assert files(output.folder) == {**before, ".lynx/superseded": b"a file in the folder's place"}


PROGRAM = """
import errno, os, sys
from pathlib import Path
import torch
from lynx_parallel.rank.selfcheck import check_rank
from lynx_parallel.model.attention import sdpa
from tests.helpers.campaigns import finish, load, write

for name in sys.argv[2:]:
    os.environ["FOLDER_FSYNC_ERRNO"] = str(getattr(errno, name))
    folder = Path(sys.argv[1], name)
    folder.mkdir()
    write(folder)
    campaign = load(folder)
    try:
        finish(campaign, campaign.shots[0])
        checks = check_rank(torch.device("cpu"), torch.float32, "sdpa", sdpa, campaign.output)
        print(name, *(check.ok for check in checks if check.name == "output"))
    except OSError as error:
        print(name, error)
"""


@pytest.fixture(scope="module")
def preload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    library = tmp_path_factory.mktemp("preload") / "no_folder_fsync.so"
    source = REPOSITORY / "tests" / "no_folder_fsync.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    return library


def test_a_file_system_that_cannot_flush_folders(tmp_path: Path, preload: Path) -> None:
    """Publishing and a rank's self-check work there. A disk that fails is still an error, and names the folder."""
    env = os.environ | {"LD_PRELOAD": str(preload), "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", PROGRAM, str(tmp_path), "EINVAL", "ENOTSUP", "EBADF", "EIO"]
    run = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    *cannot, fails = run.stdout.splitlines()
    assert cannot == ["EINVAL True", "ENOTSUP True", "EBADF True"], run.stderr
    assert fails == f"EIO [Errno 5] Input/output error: '{tmp_path / 'EIO' / 'out' / 'ada'}'"
    assert all((tmp_path / name / "out" / f"{ADA}.json").exists() for name in ("EINVAL", "ENOTSUP", "EBADF"))


def _refuse(descriptor: int) -> None:
    raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


def _publish(folder: Path) -> Path:
    (folder / "a.part").write_text("x")
    publish(folder / "a.part", folder / "a")
    return folder / "a.part"


def _write_atomically(folder: Path) -> Path:
    with atomic_write(folder / "a"):
        os.fsync(-1)
    return folder / "a"


def _fill(folder: Path) -> Path:
    """Writes onto a full device."""
    with atomic_write(folder / "a") as part:
        part.symlink_to("/dev/full")
        part.write_text("x")
    return folder / "a"


@pytest.mark.parametrize("act", [_publish, _write_atomically, _fill])
def test_every_error_names_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: Any) -> None:
    """Python names no file for what fails on an open one. A file that cannot be flushed is an error anywhere."""
    monkeypatch.setattr(os, "fsync", _refuse)
    with pytest.raises(OSError, match=r"Invalid argument|No space left") as caught:
        act(tmp_path)
    assert Path(caught.value.filename) == tmp_path / ("a.part" if act is _publish else "a")


def test_a_file_that_reads_back_other_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_bytes", lambda path: b"other")
    with pytest.raises(OSError, match="reads back other bytes than were written") as caught:
        try_publishing(tmp_path)
    assert Path(caught.value.filename).parent == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_parts_of_a_probe_are_swept(campaign: Campaign) -> None:
    """What a driver leaves that was killed in the middle of one."""
    output = Output(campaign.output)
    Journal(output.journal).append("attempt", name=ADA)
    with output.probe_shot(ADA, stale=True) as probe:
        left = [probe, part_path(output.path(ADA, "sidecar"), os.getpid()), output.private / "superseded" / "p.part"]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("probe")
    output.sweep({ADA})
    assert not [path for path in left if path.exists()]


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.ENOSPC, errno.EDQUOT], ids=errno.errorcode.get)
def test_the_driver_tries_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """A full disk is no reason to end: finished shots wait for room."""

    def refuse(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    run = CampaignRun.__new__(CampaignRun)
    run.output = Output(tmp_path)
    if number in (errno.ENOSPC, errno.EDQUOT):
        run.try_output()
    else:
        with pytest.raises(OSError, match=os.strerror(number)) as caught:
            run.try_output()
        assert Path(caught.value.filename).parent == run.output.private
    assert list(run.output.private.iterdir()) == []
