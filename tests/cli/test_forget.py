"""``lynx-render forget`` as a user meets it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lynx_parallel.engine.record import write_record
from lynx_parallel.inputs.records import Request
from lynx_parallel.output.folder import Output
from lynx_parallel.output.journal import Journal
from lynx_parallel.output.lock import Lock
from lynx_parallel.subject.cache import SubjectCache, faces
from tests.helpers.campaigns import MANIFEST, load, tree, write
from tests.helpers.light_command import errors_of, light, lynx_render, refused
from tests.helpers.planned import parts_of

MINE, OTHERS = "1" * 64, "2" * 64


def finish(folder: Path, name: str, subject: Any, shot: Any = None, host: str = "") -> Path:
    """A finished shot, as far as ``forget`` reads it."""
    output = Output(folder)
    output.path(name, "video").parent.mkdir(parents=True, exist_ok=True)
    for kind in ("video", "latents"):
        output.path(name, kind).write_bytes(b"x")
    sidecar = {
        "version": 1,
        "digests": {"latents": "a" * 64, "video": "b" * 64},
        "outputs": {}, "settings": {}, "encoding": {}, "ranks": [{"rank": 0, "host": host or os.uname().nodename}],
        "shot": {"subject": subject} if shot is None else shot,
    }  # fmt: skip
    output.path(name, "sidecar").write_text(json.dumps(sidecar))
    return output.path(name, "video")


def siblings(video: Path) -> list[Path]:
    return [video, video.with_suffix(".latents.safetensors"), video.with_suffix(".json")]


def journal(folder: Path, *records: dict[str, Any]) -> None:
    (folder / ".lynx").mkdir(parents=True, exist_ok=True)
    history = Journal(folder / ".lynx" / "journal.jsonl")
    history.extend({"event": "attempt", **record} for record in records)
    history.close()


def state(folder: Path, digest: str) -> Path:
    path = Output(folder).resume_state(digest)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SubjectCache:
    monkeypatch.setenv("LYNX_CACHE", str(tmp_path / "cache"))
    return SubjectCache()


@pytest.fixture
def folder(tmp_path: Path, cache: SubjectCache) -> Path:
    """Two outputs: ada in both, bob in spring; and one of her earlier videos moved aside."""
    for number, (name, subject) in enumerate([("spring", "ada"), ("autumn", "ada"), ("spring", "bob")]):
        out = tmp_path / name
        finish(out, f"{subject}/walk-t01", subject)
        faces(out, subject).mkdir(parents=True)
        (faces(out, subject) / "id.png").write_bytes(b"png")
        cache.put(f"{number:064x}", {"x": np.zeros(9, np.float32)}, subject=subject, output=out)
    finish(tmp_path / "spring" / ".lynx" / "superseded" / "12345678", "ada/walk-t01", "ada")
    (tmp_path / "here").mkdir()
    (tmp_path / "spring.yaml").write_text("version: 1\noutput: spring\nsubjects: {eva: {image: gone.jpg}}\n")
    return tmp_path


def gone(before: dict[str, Any], folder: Path) -> list[str]:
    """What is missing since; nothing else may have changed."""
    after = tree(folder)
    assert all(before[path] == after[path] for path in after)
    return sorted(before.keys() - after.keys())


def cached(folder: Path, number: int) -> list[Path]:
    return sorted((folder / "cache" / "subjects").glob(f"{number:064x}.*"))


SPRING_ADA = [
    "spring/.lynx/faces/ada/id.png",
    *(f"spring/.lynx/superseded/12345678/ada/walk-t01{suffix}" for suffix in (".json", ".latents.safetensors", ".mp4")),
]


def test_it_lists_and_removes_nothing(folder: Path) -> None:
    before, spring = tree(folder), folder / "spring"
    run = light("forget", "ada", "--from", folder / "spring.yaml", cwd=folder / "here")
    assert (run.returncode, run.stderr) == (0, "")
    aside = spring / ".lynx" / "superseded" / "12345678" / "ada" / "walk-t01.mp4"
    assert run.stdout.splitlines() == [
        "ada: cached face data: 2",
        *(f"  remove  {path}" for path in cached(folder, 0)),
        "ada: face crops: 1",
        f"  remove  {faces(spring, 'ada')}",
        "ada: superseded files: 3",
        *(f"  remove  {path}" for path in sorted(siblings(aside))),
        "ada: videos that remain: 1, for you to delete:",
        *(f"  keep    {path}" for path in siblings(spring / "ada" / "walk-t01.mp4")),
        "Nothing was removed. Add --yes to remove 6 paths",
    ]
    assert gone(before, folder) == []


@pytest.mark.parametrize("source", ["spring.yaml", "spring", "here/../spring"])
def test_only_the_campaign_that_is_named(folder: Path, source: str) -> None:
    """By its manifest, which no longer has the subject and whose pictures are gone, or by its output folder."""
    before, mine = tree(folder), [str(path.relative_to(folder)) for path in cached(folder, 0)]
    run = light("forget", "ada", "--from", folder / source, "--yes", cwd=folder / "here")
    assert (run.returncode, run.stderr) == (0, "")
    assert gone(before, folder) == sorted(mine + SPRING_ADA)
    assert not (folder / "spring" / ".lynx" / "superseded" / "12345678").exists()
    again = light("forget", "ada", "--from", folder / source, "--yes", cwd=folder / "here")
    assert again.returncode == 0
    assert again.stdout.splitlines()[0] == "ada: videos that remain: 1, for you to delete:"


def test_the_record_of_a_run_names_its_output_folder(tmp_path: Path, cache: SubjectCache) -> None:
    write(tmp_path)
    campaign = load(tmp_path, MANIFEST)
    record = campaign.output / ".lynx" / "manifests" / "2026-11-26T060000"
    write_record(record, campaign, parts_of(campaign, {}), Request(), "2026-11-26T06:00:00")
    faces(campaign.output, "ada").mkdir(parents=True)
    run = light("forget", "ada", "--from", record, "--yes", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert not faces(campaign.output, "ada").exists()


def test_with_another_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The output folder is searched, too: it was "nothing was cached", exit 0, and the faces stayed."""
    monkeypatch.setenv("LYNX_CACHE", str(folder / "other"))
    before = tree(folder)
    alone = light("forget", "ada", cwd=folder / "here")
    assert alone.returncode == 0
    assert alone.stdout == (
        f"ada: nothing is cached for this subject in {folder / 'other' / 'subjects'}. "
        "For an output folder of another machine or cache, add --from FOLDER\n"
    )
    assert light("forget", "ada", "--from", folder / "spring", "--yes", cwd=folder / "here").returncode == 0
    assert gone(before, folder) == sorted(SPRING_ADA)


def test_several_output_folders_need_a_choice(folder: Path) -> None:
    before = tree(folder)
    choice = (
        f"ada: used in 2 output folders: {folder / 'autumn'}, {folder / 'spring'}. "
        "Choose one with --from, or give --everywhere"
    )
    run = light("forget", "ada", cwd=folder / "here")
    assert run.returncode == 0
    assert run.stdout.splitlines()[-1] == choice
    assert refused("forget", "ada", "--yes", cwd=folder / "here") == [choice]
    assert gone(before, folder) == []


def test_everywhere(folder: Path) -> None:
    before = tree(folder)
    listed = light("forget", "ada", "--everywhere", cwd=folder / "here")
    assert listed.stdout.splitlines()[-1] == "Nothing was removed. Add --yes to remove 9 paths"
    assert gone(before, folder) == []
    assert light("forget", "ada", "--everywhere", "--yes", cwd=folder / "here").returncode == 0
    lost = [path for path in gone(before, folder) if not path.startswith("cache/")]
    assert lost == sorted([*SPRING_ADA, "autumn/.lynx/faces/ada/id.png"])
    assert not cached(folder, 0) + cached(folder, 1)
    assert len(cached(folder, 2)) == 2
    (line,) = refused("forget", "ada", "--everywhere", "--from", folder / "spring", cwd=folder / "here")
    assert line == "--everywhere: not together with --from; choose one"


def test_one_output_folder_needs_no_choice(folder: Path) -> None:
    run = light("forget", "eva", "bob", "eva", "--yes", cwd=folder / "here")
    assert run.returncode == 0
    lines = run.stdout.splitlines()
    assert lines[0].startswith("eva: nothing is cached for this subject in ")
    assert lines[1] == "bob: cached face data: 2"
    assert all(line.startswith("  removed ") for line in lines[2:4])
    assert not faces(folder / "spring", "bob").exists()
    assert faces(folder / "spring", "ada").exists()


def test_resume_states_and_half_written_files(folder: Path) -> None:
    """Of shots without a sidecar, the journal knows the subject, whatever the names look like."""
    spring = folder / "spring"
    journal(
        spring,
        {"name": "01-run", "subject": "ada", "latents": MINE},
        {"name": "02-run", "subject": "bob", "latents": OTHERS},
    )
    states = state(spring, MINE), state(spring, OTHERS)
    half = state(spring, MINE).with_name(f"{MINE}.safetensors.77.part")
    half.write_bytes(b"x")
    for part in ("01-run.mp4.1.part", "02-run.mp4.1.part", "download.mp4.1.part"):
        (spring / part).write_bytes(b"x")
    (spring / "01-run.mp4").write_bytes(b"x")  # published, but killed before its sidecar
    run = light("forget", "ada", "--from", spring, "--yes", cwd=folder / "here")
    assert run.returncode == 0, run.stderr
    assert f"  keep    {spring / '01-run.mp4'}" in run.stdout.splitlines()
    assert [path.exists() for path in (*states, half)] == [False, True, False]
    assert {path.name for path in spring.glob("*.part")} == {"02-run.mp4.1.part", "download.mp4.1.part"}


def test_journals_of_the_first_version(folder: Path) -> None:
    """They have no subject: a sidecar of the same name says it, or else the name begins with it."""
    spring = folder / "spring"
    finish(spring, "01-walk", "ada")
    finish(spring / ".lynx" / "superseded" / "87654321", "03-walk", "ada")
    names = ["01-walk", "ada/run-t01", "03-walk", "bob/run-t01"]
    journal(spring, *({"name": name, "latents": str(number) * 64} for number, name in enumerate(names, start=3)))
    states = [state(spring, str(number) * 64) for number in range(3, 8)]
    lost = spring / ".lynx" / "superseded" / "unknown" / "ada" / "run-t01.mp4"
    lost.parent.mkdir(parents=True)
    lost.write_bytes(b"x")
    run = light("forget", "ada", "--from", spring, "--yes", cwd=folder / "here")
    assert [path.exists() for path in states] == [False, False, False, True, True]
    assert not lost.exists()
    assert run.stdout.splitlines()[-2:] == [
        "files of unknown subjects: 1, for you to check:",
        f"  unknown {states[-1]}",
    ]


def test_other_machines_are_named(folder: Path) -> None:
    for number in range(5):
        finish(folder / "spring", f"ada/run-t0{number}", "ada", host=f"node{number}")
    run = light("forget", "ada", "--from", folder / "spring", cwd=folder / "here")
    line = "ada: also rendered on node0, node1, node2 and 2 more. Run this command there too: "
    assert f"{line}each machine has its own cache" in run.stdout.splitlines()


def test_a_misspelled_subject(folder: Path) -> None:
    run = light("forget", "adda", "--from", folder / "spring", "--yes", cwd=folder / "here")
    assert (run.returncode, run.stdout) == (
        0, "adda: nothing found; did you mean 'ada'? (subjects there: ada, bob)\n",
    )  # fmt: skip


def test_a_folder_in_which_a_run_is_at_work(folder: Path) -> None:
    with Lock(folder / "spring" / ".lynx" / "lock"):
        before = tree(folder)
        assert light("forget", "ada", "--from", folder / "spring", cwd=folder / "here").returncode == 0
        run = light("forget", "ada", "--from", folder / "spring", "--yes", cwd=folder / "here")
        assert (run.returncode, run.stdout) == (3, "")
        assert run.stderr.startswith(f"{folder / 'spring'}: another driver is at work here: ")
        after = tree(folder)
        assert before.keys() == after.keys()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("here", "--from here: not an output folder: it holds neither .lynx nor a sidecar"),
        (".", "--from .: not an output folder: it holds neither .lynx nor a sidecar"),  # it holds several
        ("./none", "--from ./none: no such manifest or output folder"),
        ("none.yaml", "none.yaml: no such manifest"),
        ("later.yaml", "--from later.yaml: its output folder {}/later does not exist. If --set output named another"),
        ("empty.yaml", "empty.yaml:1: output: missing: the folder for the videos"),
    ],
)
def test_wrong_sources(folder: Path, source: str, message: str) -> None:
    (folder / "later.yaml").write_text("output: later\n")
    (folder / "empty.yaml").write_text("version: 1\n")
    (line,) = refused("forget", "ada", "--from", source, "--yes", cwd=folder)
    assert line.startswith(message.format(folder))


def test_an_output_folder_that_is_gone(folder: Path) -> None:
    """What is cached of it can still be forgotten."""
    shutil.rmtree(folder / "spring")
    run = light("forget", "ada", "--from", folder / "spring.yaml", "--yes", cwd=folder / "here")
    assert run.returncode == 0
    assert run.stderr.startswith(f"{folder / 'spring'}: missing; if it is on a disk that is not connected, remove ")
    assert not cached(folder, 0)
    assert cached(folder, 1)


def test_nothing_was_ever_cached(tmp_path: Path, cache: SubjectCache) -> None:
    run = light("forget", "ada", "--yes", cwd=tmp_path)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.startswith(f"ada: nothing is cached for this subject in {cache.root}. ")
    assert os.listdir(tmp_path) == []


def test_no_videos(folder: Path, cache: SubjectCache) -> None:
    cache.put("c" * 64, {}, subject="eva", output=folder / "spring")
    run = light("forget", "eva", "--yes", cwd=folder / "here")
    assert run.stdout.splitlines()[-1] == "eva: videos that remain: 0"


def test_json(folder: Path) -> None:
    run = light("forget", "ada", "eva", "--everywhere", "--json", cwd=folder / "here")
    assert run.returncode == 0
    told = json.loads(run.stdout)
    assert (told["removed"], told["exit_code"]) == (False, 0)
    ada, eva = told["subjects"]
    assert (ada["subject"], ada["known"], ada["left"]) == ("ada", True, ada["left"])
    assert ada["outputs"] == [str(folder / "autumn"), str(folder / "spring")]
    videos = [folder / name / "ada" / "walk-t01.mp4" for name in ("autumn", "spring")]
    assert ada["videos"] == list(map(str, videos))
    assert ada["files"] == [str(path) for video in videos for path in siblings(video)]
    assert ada["crops"] == [str(faces(folder / name, "ada")) for name in ("autumn", "spring")]
    assert (eva["known"], eva["files"], eva["cached"]) == (False, [], [])


def test_a_video_that_was_deleted_by_hand(folder: Path) -> None:
    """Its latents still show the person."""
    (folder / "spring" / "bob" / "walk-t01.mp4").unlink()
    run = light("forget", "bob", cwd=folder / "here")
    latents = folder / "spring" / "bob" / "walk-t01.latents.safetensors"
    assert f"  keep    {latents}" in run.stdout.splitlines()
    assert json.loads(light("forget", "bob", "--json", cwd=folder / "here").stdout)["subjects"][0]["videos"] == [
        str(latents)
    ]


@pytest.mark.parametrize("shot", ["ada", ["ada"], {"subject": ["ada"]}, {}, 0])
def test_sidecars_that_say_nothing_of_a_subject(folder: Path, shot: Any) -> None:
    finish(folder / "spring", "odd", None, shot)
    run = light("forget", "ada", "--from", folder / "spring", cwd=folder / "here")
    assert run.returncode == 0
    assert "odd" not in run.stdout


@pytest.mark.parametrize("content", [b"", b"\xff\xfe{", b"[1]\n{}\n", b'{"name": 1, "subject": [2], "latents": {}}\n'])
def test_a_journal_of_anything(folder: Path, content: bytes) -> None:
    (folder / "spring" / ".lynx" / "journal.jsonl").write_bytes(content)
    assert light("forget", "ada", "--from", folder / "spring", cwd=folder / "here").returncode == 0


@pytest.mark.parametrize("wrong", ["../x", "", ".", "a/b", "ada\n", "é", "a" * 101])
@pytest.mark.parametrize("option", [[], ["--from", "../spring", "--yes"]])
def test_wrong_ids(folder: Path, wrong: str, option: list[str]) -> None:
    everything = tree(folder)
    (line,) = refused("forget", "ada", wrong, *option, cwd=folder / "here")
    assert line.startswith(f"{wrong!r}: an id is a letter or digit, then up to 99 ")
    assert tree(folder) == everything


def test_without_a_subject(tmp_path: Path) -> None:
    assert refused("forget", cwd=tmp_path)[-1].startswith("forget: SUBJECT is missing")


def test_a_cache_that_cannot_be_read_is_one_line(tmp_path: Path, cache: SubjectCache) -> None:
    """Never a false "nothing is cached"."""
    cache.root.parent.mkdir()
    cache.root.write_text("a file")
    run = lynx_render("forget", "ada", cwd=tmp_path)
    assert (run.returncode, run.stdout) == (3, "")
    assert errors_of(run) == [f"{cache.root}: Not a directory"]


@pytest.mark.parametrize("known", [True, False])
def test_crops_that_cannot_be_removed(
    folder: Path, cache: SubjectCache, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    """Told once, and exit 1. (Root removes what it likes; a folder in which another is mounted it cannot.)"""
    crops = faces(folder / "spring", "ada")
    mounted = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(crops)]
    if os.geteuid() == 0:
        if subprocess.run(mounted, capture_output=True, check=False).returncode:
            pytest.skip("nothing can be mounted here")
    else:
        crops.chmod(0o500)
    if not known:
        monkeypatch.setenv("LYNX_CACHE", str(folder / "other"))
    options = ("--from", folder / "spring", "--yes")
    try:
        run = light("forget", "ada", *options, cwd=folder / "here")
    finally:
        if os.geteuid() == 0:
            subprocess.run(["umount", str(crops)], check=True)
        else:
            crops.chmod(0o700)
    assert run.returncode == 1
    (line,) = run.stderr.splitlines()
    assert line.startswith(f"{crops}: cannot be removed: ")
    assert f"  left    {crops}" in run.stdout.splitlines()
    assert bool(list(cache.root.glob(f"{0:064x}*.safetensors"))) is not known
    again = light("forget", "ada", *options, cwd=folder / "here")
    assert again.returncode == 0
    assert not crops.exists()
