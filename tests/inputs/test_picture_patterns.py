"""``subjects: {from: faces/*.jpg}``: which files it takes, and what it says of the others."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest

from lynx_parallel.inputs import picture_patterns as pictures
from lynx_parallel.inputs.load import load_campaign
from lynx_parallel.inputs.manifest import Campaign, Consent
from lynx_parallel.inputs.problems import Problems
from tests.helpers.manifests import HEAD, Complain, Load

TINY = HEAD.replace("lite.yaml", "demo-tiny")
NO_PICTURE = "subjects.from matches files that are no pictures; they were left out"
MADE = "a file name is no valid id, so one was made from it; rename the file, or give an id, to choose it"


def manifest(pattern: str, more: str = "") -> str:
    return TINY + f"subjects: {{from: '{pattern}'{more}}}\nprompts: {{p: 'A {{person|person}}.'}}\n"


def put(folder: Path, *names: str, content: bytes = b"x") -> None:
    for name in names:
        file = folder / "faces" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


def ids(campaign: Campaign) -> list[str]:
    return [subject.id for subject in campaign.subjects]


def said(campaign: Campaign) -> list[tuple[str, str]]:
    return [(notice.kind, notice.example) for notice in campaign.notices]


@pytest.fixture(autouse=True)
def _empty(folder: Path) -> None:
    for file in (folder / "faces").iterdir():
        file.unlink()


@pytest.mark.parametrize("pattern", ["faces/*.jpg", "faces/*.JPG", "faces/[A-Z]*.Jpg", "faces/*.[jJ]pg"])
def test_suffixes_in_any_case(folder: Path, load: Load, pattern: str) -> None:
    put(folder, "DSC_0001.JPG", "Eve.jpg", "Bob.Jpg")
    campaign = load(manifest(pattern))
    assert ids(campaign) == ["Bob", "DSC_0001", "Eve"]
    assert campaign.subjects[1].image == folder / "faces" / "DSC_0001.JPG"
    assert said(campaign) == []


def test_case_counts_in_the_rest_of_a_name(folder: Path, load: Load) -> None:
    put(folder, "DSC_1.JPG", "dsc_2.jpg")
    assert ids(load(manifest("faces/dsc_*.jpg"))) == ["dsc_2"]


def test_what_is_no_picture_is_left_out_and_named(folder: Path, load: Load) -> None:
    put(folder, "ada.jpg", "notes.txt", "Thumbs.db", "desktop.ini", ".DS_Store", "._ada.jpg", ".hidden.jpg")
    put(folder, "cars.txt", content=b"BMW and more")
    put(folder, "scan.dat", "bare", content=b"\xff\xd8\xff\xe0 a JPEG by its content")
    (folder / "faces" / "team").mkdir()
    (folder / "faces" / "gone.jpg").symlink_to("nowhere.jpg")
    campaign = load(manifest("faces/*"))
    assert ids(campaign) == ["ada", "bare", "scan"]
    assert {notice.message for notice in campaign.notices} == {NO_PICTURE}
    assert said(campaign) == [
        ("not-a-picture", "faces/Thumbs.db"),
        ("not-a-picture", "faces/cars.txt"),
        ("not-a-picture", "faces/desktop.ini"),
        ("not-a-picture", "faces/gone.jpg (a broken link)"),
        ("not-a-picture", "faces/notes.txt"),
        ("not-a-picture", "faces/team/ (a folder; ** searches inside)"),
    ]


def test_hidden_files_on_purpose(folder: Path, load: Load) -> None:
    put(folder, ".x.jpg", "._x.jpg")
    campaign = load(manifest("faces/.*"))
    assert ids(campaign) == ["x"]
    assert said(campaign) == [("not-a-picture", "faces/._x.jpg"), ("id-made", "faces/.x.jpg → x")]


@pytest.mark.parametrize(
    "pattern", ["faces/**/*.jpg", "faces/**.jpg", "faces/**", "**/*.jpg", "./faces//**/?[a-z]*.jpg"]
)
def test_two_stars_search_inside(folder: Path, load: Load, pattern: str) -> None:
    put(folder, "ada.jpg", "2026/bob.jpg", "2026/may/eve.JPG", ".trash/old.jpg")
    os.symlink(folder / "faces", folder / "faces" / "2026" / "again")  # a loop
    os.symlink(folder / "faces", folder / "faces" / "2026" / "twice")
    campaign = load(manifest(pattern))
    assert ids(campaign) == ["bob", "eve", "ada"]
    assert said(campaign) == []


@pytest.mark.parametrize("pattern", ["faces", "faces/", "faces/[x] y", "~/faces"])
def test_a_folder_stands_for_its_pictures(
    folder: Path, load: Load, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    monkeypatch.setenv("HOME", str(folder))
    put(folder, *(f"{pattern.removeprefix('~/').rstrip('/')}/{name}"[6:] for name in ("ada.jpg", "bob.PNG", "x.txt")))
    campaign = load(manifest(pattern))
    assert ids(campaign) == ["ada", "bob"]
    assert [kind for kind, example in said(campaign) if example.endswith("x.txt")] == ["not-a-picture"]


def test_folders_and_pictures_that_are_links(folder: Path, load: Load) -> None:
    put(folder, "ada.jpg")
    (folder / "more").symlink_to("faces")
    (folder / "faces" / "bob.jpg").symlink_to("ada.jpg")
    assert ids(load(manifest("more/*.jpg"))) == ["ada", "bob"]
    assert ids(load(manifest("*/*.jpg"))) == ["ada", "bob"]


def test_pictures_with_another_suffix_are_named(folder: Path, load: Load) -> None:
    put(folder, "ada.jpg", "ada.png", "bob.jpeg", "eve.HEIC", "list.txt")
    campaign = load(manifest("faces/*.jpg"))
    assert ids(campaign) == ["ada"]
    assert said(campaign) == [("picture-left-out", "faces/bob.jpeg"), ("picture-left-out", "faces/eve.HEIC")]
    assert said(load(manifest("faces/a*.jpg"))) == []
    assert said(load(manifest("faces/ada.jpg"))) == []


@pytest.mark.parametrize(
    ("pattern", "line"),
    [
        ("faces/*.txt", "'faces/*.txt': matches no picture, only faces/a.txt, faces/b.txt"),
        ("faces/*.jpg", "'faces/*.jpg': matches no file"),
        ("none/*.jpg", "'none/*.jpg': matches no file"),
        ("faces/d*", "'faces/d*': matches no picture, only faces/d/ (a folder; ** searches inside)"),
    ],
)
def test_nothing_found(folder: Path, complain: Complain, pattern: str, line: str) -> None:
    put(folder, "a.txt", "b.txt", "d/x.jpg")
    assert complain(manifest(pattern)) == [f"m.yaml:4: subjects.from: {line}"]


@pytest.mark.parametrize("name", ["[ACME] spring 2026", "spring [1-3]", "what? * {x}"])
def test_a_manifest_in_a_folder_with_pattern_characters(folder: Path, load: Load, name: str) -> None:
    put(folder, "ada.jpg")
    (folder / "faces" / "beach.txt").write_text("A beach.")
    (folder / name).mkdir()
    (folder / "faces").rename(folder / name / "faces")
    text = manifest("faces/*.jpg").replace("prompts: {", "prompts: {b: {file: faces/beach.txt}, ")
    (folder / name / "m.yaml").write_text(text)
    campaign = load_campaign(folder / name / "m.yaml")
    assert [(shot.id, shot.text) for shot in campaign.shots] == [("ada/b/1", "A beach."), ("ada/p/1", "A person.")]
    assert campaign.subjects[0].image == folder / name / "faces" / "ada.jpg"
    assert campaign.output == folder / name / "out"


@pytest.mark.parametrize("pattern", ["faces/[ACME] spring/*.jpg", "faces/[[]ACME] spring/*.jpg", "faces/*/[a]*.jpg"])
def test_a_pattern_through_a_folder_with_pattern_characters(folder: Path, load: Load, pattern: str) -> None:
    put(folder, "[ACME] spring/ada.jpg")
    assert ids(load(manifest(pattern))) == ["ada"]
    put(folder, "[b].jpg")
    assert ids(load(manifest("faces/[b].jpg"))) == ["b"]


def test_only_with_brackets_in_output_names(folder: Path, load: Load, complain: Complain) -> None:
    put(folder, "ada.jpg", "bob.jpg")
    text = manifest("faces/*.jpg") + "name: '[ACME] {subject}/{prompt}'\n"
    for pattern in ("[ACME] ada/p", "[ACME] a*", "?ACME? ada/*"):
        assert [shot.name for shot in load(text, only=[pattern]).shots] == ["[ACME] ada/p"]
    assert len(complain(text, only=["[ACME] eve/p"])) == 1


def test_names_decomposed_as_on_macos(folder: Path, load: Load) -> None:
    put(folder, unicodedata.normalize("NFD", "Jürgen.jpg"))
    assert ids(load(manifest("faces/J" + unicodedata.normalize("NFC", "ü") + "rgen*.jpg"))) == ["Jurgen"]


def test_ids_are_made_from_names_that_are_none(folder: Path, load: Load) -> None:
    put(folder, "Porträt Nr 3.png", "ada.png", "张伟.png")
    campaign = load(manifest("faces/*.png"))
    assert ids(campaign) == ["Portrat-Nr-3", "ada", "a3a0bafd"]
    assert campaign.shots[0].name == "Portrat-Nr-3/p-t01"
    assert campaign.subjects[0].image == folder / "faces" / "Porträt Nr 3.png"
    assert {notice.message for notice in campaign.notices} == {MADE}
    assert said(campaign) == [
        ("id-made", "faces/Porträt Nr 3.png → Portrat-Nr-3"),
        ("id-made", "faces/张伟.png → a3a0bafd"),
    ]


@pytest.mark.parametrize(
    ("names", "line"),
    [
        (("a b.jpg", "a-b.jpg"), "'a b.jpg' and 'a-b.jpg' give the same id 'a-b'; rename one of them"),
        (("Å.jpg", "a.jpg"), "'a.jpg' and 'Å.jpg' give the same id 'A'; rename one of them"),
        (("x/ada.jpg", "y/ada.jpg"), "faces/x/ada.jpg and faces/y/ada.jpg give the same id 'ada'; rename one of them"),
    ],
)
def test_made_ids_are_unique_or_refused(folder: Path, complain: Complain, names: tuple[str, ...], line: str) -> None:
    put(folder, *names)
    assert complain(manifest("faces/**/*.jpg")) == [f"m.yaml:4: subjects.from: {line}"]


def test_settings_for_all_pictures(folder: Path, load: Load) -> None:
    put(folder, "ada.jpg", "bob.jpg")
    more = (
        ", face: only, vars: {person: woman}, sampling: {ip_scale: 0.5}, labels: {wave: 1},"
        " consent: {ref: R1, scope: web, expires: 2027-01-31}"
    )
    campaign = load(manifest("faces/*.jpg", more))
    assert [(s.text, s.sampling.ip_scale) for s in campaign.shots] == [("A woman.", 0.5)] * 2
    for subject in campaign.subjects:
        assert (subject.face, subject.labels) == ("only", {"wave": 1})
        assert subject.consent == Consent("R1", "web", date(2027, 1, 31))


@pytest.mark.parametrize(
    ("more", "line"),
    [
        (", vars: {a b: x}", "m.yaml:4: subjects.vars.'a b': 'a b': a var's name is a letter or '_', then letters"),
        (", sampling: {ip_scale: x}", "m.yaml:4: subjects.sampling.ip_scale: 'x': must be a finite number from 0"),
        (", image: x", "m.yaml:4: subjects.image: unknown key; allowed: from, face, vars, sampling, consent, labels"),
        (", consent: {scope: x}", "m.yaml:4: subjects.consent.ref: missing: text that says where the consent is filed"),
    ],
)
def test_wrong_settings_for_all_pictures(folder: Path, complain: Complain, more: str, line: str) -> None:
    put(folder, "ada.jpg", "bob.jpg")
    (found,) = complain(manifest("faces/*.jpg", more))
    assert found.startswith(line)


def test_a_folder_that_cannot_be_read(folder: Path, complain: Complain, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def refuse(path: str) -> Iterator[os.DirEntry[str]]:
        if str(path).endswith("faces"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert complain(manifest("faces/*.jpg")) == [
        "m.yaml:4: subjects.from: 'faces/*.jpg': cannot read faces: Permission denied"
    ]


def test_a_thousand_pictures_are_opened_by_nobody(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A known suffix is enough; only other files are read, 16 bytes each."""
    put(folder, *(f"p{i}.jpg" for i in range(1000)))
    monkeypatch.setattr(pictures, "open", None, raising=False)
    found, others = pictures.find_pictures(folder, "faces/*", Problems())
    assert (len(found), others) == (1000, [])
