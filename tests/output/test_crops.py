"""The crops in the output folder are those of the current render, and as private as the manifest says."""

from __future__ import annotations

import errno
import multiprocessing
import os
import stat
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lynx_parallel.engine.campaign_run import CampaignRun
from lynx_parallel.engine.driver import Driver
from lynx_parallel.engine.observer import Observer
from lynx_parallel.inputs.cluster import ClusterSpec
from lynx_parallel.inputs.load import load_campaign
from lynx_parallel.output.crops import Crops, faces_folder, make_faces_folder
from lynx_parallel.plan.plan import make_plan
from tests.helpers.campaigns import MANIFEST, WEIGHTS, finish, load, write
from tests.helpers.planned import parts_of

ID = np.full((112, 112, 3), 1, np.uint8)


def ref(size: int, level: int = 2) -> np.ndarray:
    return np.full((size, size, 3), level, np.uint8)


def levels(crops: Crops) -> dict[str, int]:
    """Grey level of each file, by name."""
    return {path.name: int(np.asarray(Image.open(path))[0, 0, 0]) for path in sorted(crops.folder.iterdir())}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def crops(tmp_path: Path) -> Crops:
    (tmp_path / "out").mkdir()
    return Crops(tmp_path / "out", "ada", "picture 1", frozenset({256}))


def test_another_picture_replaces_the_crops(crops: Crops) -> None:
    crops.show(ID, ref(256))
    assert levels(crops) == {"id.png": 1, "ref-256.png": 2}
    replace(crops, source="picture 2").show(ID + 10, ref(256, 20))
    assert levels(crops) == {"id.png": 11, "ref-256.png": 20}


def test_crops_of_the_first_version_are_stale(crops: Crops) -> None:
    crops.folder.mkdir(parents=True)
    for name in ("id.png", "ref.png"):
        Image.fromarray(ref(256, 99)).save(crops.folder / name)
    crops.show(ID, ref(256))
    assert levels(crops) == {"id.png": 1, "ref-256.png": 2}


def test_two_sizes_in_one_campaign(crops: Crops) -> None:
    """Both are shown; with another picture, the size that is not rendered yet is removed at once."""
    crops = replace(crops, sizes=frozenset({256, 384}))
    crops.show(ID, ref(256))
    crops.show(ID, ref(384, 3))
    crops.show(ID, ref(256))
    assert levels(crops) == {"id.png": 1, "ref-256.png": 2, "ref-384.png": 3}
    replace(crops, source="picture 2").show(ID + 10, ref(384, 30))
    assert levels(crops) == {"id.png": 11, "ref-384.png": 30}


def test_a_size_that_no_shot_uses_any_more(crops: Crops) -> None:
    crops.show(ID, ref(256))
    replace(crops, sizes=frozenset({384})).show(ID, ref(384, 3))
    assert levels(crops) == {"id.png": 1, "ref-384.png": 3}


def test_an_embedding_and_lite_leave_no_crop(crops: Crops) -> None:
    crops.show(ID, ref(256))
    replace(crops, source="with an embedding").show(None, ref(256))
    assert levels(crops) == {"ref-256.png": 2}
    replace(crops, source="lite").show(ID, None)
    assert levels(crops) == {"id.png": 1}
    replace(crops, source="lite with an embedding").show(None, None)
    assert not crops.folder.exists()
    crops.show(None, None)  # where nothing ever was
    assert not crops.folder.exists()


def test_other_files_stay(crops: Crops) -> None:
    crops.show(ID, ref(256))
    (crops.folder / "note.txt").write_text("approved")
    crops.remove()
    assert [path.name for path in crops.folder.iterdir()] == ["note.txt"]


def test_what_is_right_is_not_written_again(crops: Crops) -> None:
    crops.show(ID, ref(256))
    before = {path: path.stat().st_ino for path in crops.folder.iterdir()}
    crops.show(ID, ref(256))
    assert {path: path.stat().st_ino for path in crops.folder.iterdir()} == before


@pytest.mark.parametrize("damage", ["cut", "empty", "edited", "link", "pipe"])
def test_a_damaged_file_is_replaced(crops: Crops, damage: str, tmp_path: Path) -> None:
    crops.show(ID, ref(256))
    path, other = crops.folder / "id.png", tmp_path / "other"
    content = path.read_bytes()
    match damage:
        case "cut" | "empty":
            path.write_bytes(content[: len(content) // 2 if damage == "cut" else 0])
        case "edited":
            Image.fromarray(ID + 5).save(path)
        case "link":
            other.write_bytes(content)
            path.unlink(), path.symlink_to(other)
        case "pipe":
            path.unlink(), os.mkfifo(path)
    assert crops.show(ID, ref(256)) is None
    assert levels(crops) == {"id.png": 1, "ref-256.png": 2}
    assert not path.is_symlink()
    assert damage != "link" or other.read_bytes() == content


def _gang(crops: Crops, size: int, gate: Any, results: Any) -> None:
    gate.wait()
    results.put([crops.show(ID, ref(size, size // 128)) for _ in range(30)])


def test_two_gangs_at_one_subject(crops: Crops) -> None:
    crops = replace(crops, sizes=frozenset({256, 384}))
    context = multiprocessing.get_context("fork")
    gate, results = context.Barrier(4), context.Queue()
    gangs = [context.Process(target=_gang, args=(crops, size, gate, results)) for size in (256, 384, 256, 384)]
    for gang in gangs:
        gang.start()
    assert [results.get(timeout=60) for _ in gangs] == [[None] * 30] * 4
    for gang in gangs:
        gang.join()
    assert levels(crops) == {"id.png": 1, "ref-256.png": 2, "ref-384.png": 3}


def test_a_crop_that_cannot_be_written_is_a_warning_and_no_stale_one_stays(
    crops: Crops, monkeypatch: pytest.MonkeyPatch
) -> None:
    crops.show(ID, ref(384))

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("lynx_parallel.output.crops.publish", full)
    warning = replace(crops, source="picture 2").show(None, ref(256))
    assert warning == f"{crops.folder}: the crops cannot be shown: No space left on device"
    assert list(crops.folder.iterdir()) == []


@pytest.fixture(params=[0o022, 0o077, 0o000])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.parametrize("outer", [0o700, 0o750, 0o775])
def test_crops_inherit_the_mode_of_the_output_folder(crops: Crops, umask: int, outer: int) -> None:
    crops.output.chmod(outer)
    crops.show(ID, ref(256))
    assert [mode(path) for path in (crops.folder, crops.folder.parent)] == [outer] * 2
    assert {mode(path) for path in crops.folder.iterdir()} == {outer & 0o666}


def test_private_crops_are_for_their_owner_alone(crops: Crops, umask: int) -> None:
    crops.output.chmod(0o775)
    replace(crops, private=True).show(ID, ref(256))
    assert [mode(path) for path in (crops.folder, crops.folder.parent)] == [0o700] * 2
    assert {mode(path) for path in crops.folder.iterdir()} == {0o600}


def test_a_folder_that_exists_is_closed_but_never_opened(crops: Crops) -> None:
    crops.output.chmod(0o755)
    crops.show(ID, None)
    assert mode(faces_folder(crops.output)) == 0o755
    assert make_faces_folder(crops.output, private=True) is None
    assert mode(faces_folder(crops.output)) == 0o700
    crops.show(ID, None)
    assert mode(faces_folder(crops.output)) == 0o700


@pytest.mark.parametrize("refused", [errno.EPERM, errno.ENOTSUP])
def test_a_file_system_without_modes_costs_one_warning(
    crops: Crops, monkeypatch: pytest.MonkeyPatch, refused: int
) -> None:
    crops.output.chmod(0o755)
    crops.show(None, ref(256))

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(refused, os.strerror(refused))

    monkeypatch.setattr(Path, "chmod", refuse)
    monkeypatch.setattr(os, "fchmod", refuse)
    warning = make_faces_folder(crops.output, private=True)
    assert warning == (
        f"{faces_folder(crops.output)}: cannot be closed to others: {os.strerror(refused)}. "
        "The file system decides who can read the crops."
    )
    assert replace(crops, private=True).show(ID, ref(256)) is None  # the driver has said so
    assert levels(crops) == {"id.png": 1, "ref-256.png": 2}


def test_a_manifest_that_becomes_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The crops are closed though nothing is left to render; one warning where the file system refuses."""
    write(tmp_path)
    campaign = load(tmp_path, MANIFEST.replace("output: out", "output: out\nfaces: private"))
    for shot in campaign.shots:
        finish(campaign, shot)
    replan = partial(make_plan, campaign, WEIGHTS, today=date(2026, 1, 1))
    lines: list[str] = []

    def run() -> None:
        Driver([CampaignRun(campaign, parts_of(campaign), replan)], ClusterSpec(), Observer(lines.append)).run()  # type: ignore[arg-type]

    run()
    assert not faces_folder(campaign.output).exists()
    faces_folder(campaign.output).mkdir(parents=True)
    faces_folder(campaign.output).chmod(0o755)
    run()
    assert mode(faces_folder(campaign.output)) == 0o700
    assert not [line for line in lines if "warning" in line]
    faces_folder(campaign.output).chmod(0o755)

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(Path, "chmod", refuse)
    run()
    (line,) = [line for line in lines if "warning" in line]
    assert line.startswith(f"warning: {faces_folder(campaign.output)}: cannot be closed to others: ")


def test_the_sizes_that_a_campaign_uses(tmp_path: Path) -> None:
    """Those of shots that --only leaves out, too: their crops stay."""
    write(tmp_path)
    text = MANIFEST + "shots:\n- {subject: '*', prompt: walk}\n"
    text += "- {subject: ada, prompt: run, sampling: {reference_size: 384}}\n"
    (tmp_path / "m.yaml").write_text(text)
    campaign = load_campaign(tmp_path / "m.yaml", (), ["ada/walk"])
    assert [shot.name for shot in campaign.shots] == ["ada/walk-t01"]
    assert campaign.reference_sizes == {"ada": {256, 384}, "bob": {256}}
    assert campaign.faces == "inherit"
