"""``subjects: {from: people.csv}``."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import openpyxl
import pytest

from lynx_parallel.inputs.load import load_campaign
from lynx_parallel.inputs.manifest import Consent
from tests.helpers.manifests import HEAD, Complain, Load

PROMPTS = "prompts: {p: 'A {person|person} runs.'}\n"
TEXT = HEAD + "subjects: {from: faces/people.csv}\n" + PROMPTS


@pytest.fixture
def people(folder: Path) -> Path:
    """The table lies beside the pictures, not beside the manifest."""
    return folder / "faces" / "people.csv"


def test_every_column(people: Path, load: Load) -> None:
    people.write_text(
        "id,image,embedding,landmarks,face,vars.person,vars.hat,consent.ref,consent.scope,consent.expires,"
        "labels.team,labels.staff number,sampling.ip_scale,sampling.negative_prompt,_x,notes\n"
        'ada, ada.jpg ,ada.npy,"1 2, 3 4.5; (5, 6) 7 8 9 10",2,woman ,red,R1,web,2027-01-31,mission,007,0.5,"a, b",'
        "x,y\n"
        "bob,,bob.npy,,,,,,,,,,,,,\n"
    )
    campaign = load(TEXT)
    ada, bob = campaign.subjects
    assert (ada.id, ada.image, ada.embedding) == ("ada", people.parent / "ada.jpg", people.parent / "ada.npy")
    assert ada.landmarks == ((1, 2), (3, 4.5), (5, 6), (7, 8), (9, 10))
    assert (ada.face, ada.vars) == (2, {"person": "woman", "hat": "red"})
    assert ada.consent == Consent("R1", "web", date(2027, 1, 31))
    assert ada.labels == {"team": "mission", "staff number": "007"}
    assert ada.sampling.given() == {"ip_scale": 0.5, "negative_prompt": "a, b"}
    assert (bob.image, bob.face, bob.vars, bob.consent, bob.labels) == (None, "largest", {}, None, {})
    assert [shot.text for shot in campaign.shots] == ["A woman runs.", "A person runs."]
    assert [shot.sampling.ip_scale for shot in campaign.shots] == [0.5, 1.0]
    assert campaign.notices == ()


def test_ids_from_file_names(people: Path, load: Load) -> None:
    (people.parent / "Porträt Nr 3.jpg").write_bytes(b"x")
    (people.parent / "Porträt Nr 3.npy").write_bytes(b"x")
    people.write_text("image;embedding\n;ada.npy\nPorträt Nr 3.jpg;Porträt Nr 3.npy\n")
    campaign = load(TEXT)
    assert [subject.id for subject in campaign.subjects] == ["ada", "Portrat-Nr-3"]
    assert [(n.kind, n.example) for n in campaign.notices] == [("id-made", "Porträt Nr 3.jpg → Portrat-Nr-3")]


def test_a_row_wins_over_what_is_given_for_all(people: Path, load: Load) -> None:
    people.write_text(
        "id,embedding,face,vars.person,consent.expires,labels.a,sampling.fps\nada,ada.npy,3,woman,2027-01-31,x,8\nbob,bob.npy,,,,,\n"
    )
    given = (
        ", face: only, vars: {person: somebody, hat: cap}, consent: {ref: R, scope: web}, labels: {a: 1, b: 2},"
        " sampling: {fps: 24, ip_scale: 0.5}"
    )
    ada, bob = load(TEXT.replace("people.csv", "people.csv" + given)).subjects
    assert (ada.face, ada.vars, ada.labels) == (3, {"person": "woman", "hat": "cap"}, {"a": "x", "b": 2})
    assert ada.consent == Consent("R", "web", date(2027, 1, 31))
    assert ada.sampling.given() == {"fps": 8.0, "ip_scale": 0.5}
    assert (bob.face, bob.vars, bob.labels) == ("only", {"person": "somebody", "hat": "cap"}, {"a": 1, "b": 2})
    assert bob.consent == Consent("R", "web", None)
    assert bob.sampling.given() == {"fps": 24.0, "ip_scale": 0.5}


def test_a_workbook_of_people(folder: Path, load: Load) -> None:
    book = openpyxl.Workbook()
    book.active.append(["id", "embedding", "face", "consent.ref", "consent.expires", "labels.number", "vars.age"])
    book.active.append([17, "faces/ada.npy", 1.0, "R", date(2027, 1, 31), 4711, 30])
    book.save("people.xlsx")
    (subject,) = load(TEXT.replace("faces/people.csv", "people.xlsx")).subjects
    assert (subject.id, subject.face, subject.labels, subject.vars) == ("17", 1, {"number": "4711"}, {"age": "30"})
    assert subject.consent == Consent("R", None, date(2027, 1, 31))


COLUMNS = "id, image, embedding, landmarks, face, vars.{0}, labels.{0}, consent.ref, consent.scope, consent.expires"


@pytest.mark.parametrize(
    ("table", "lines"),
    [
        ("", ["1: is empty: the first row names the columns"]),
        ("id,image\n,\n", ["2: has no rows: at least one subject must result"]),
        ("vars.person\nx\n", ["1: column id, image or embedding: missing"]),
        ("id,person\n", [
            f"1: column 'person': unknown column; did you mean 'vars.person'? (allowed: {COLUMNS.format('person')}"]),
        ("id,var.hat\n", [
            f"1: column 'var.hat': unknown column; did you mean 'vars.hat'? (allowed: {COLUMNS.format('hat')}"]),
        ("id,vars.a b,labels.\n", [
            "1: column 'vars.a b': unknown column; did you mean 'vars.a_b'?",
            "1: column 'labels.': unknown column; did you mean 'labels.name'?"]),
        ("id,Größe\n", ["1: column 'Größe': unknown column; did you mean 'labels.Größe'?"]),
        ("id,imgae\n", ["1: column 'imgae': unknown column; did you mean 'image'?"]),
        ("id,embedding\nada,ada.npy\nADA,bob.npy\n", [
            "3: row: the id 'ADA' is given twice, first as 'ada' on line 2 (case is ignored)"]),
        ("image,embedding\nada.jpg,ada.npy\n../faces/ada.jpg,bob.npy\n", [
            "3: row: the id 'ada' is given twice, first as 'ada' on line 2 (case is ignored)"]),
        ("id,embedding\nAnna Müller,ada.npy\n", [
            "2: column id: 'Anna Müller': an id is a letter or digit, then up to 99 letters, digits, '.', '_' or '-'"
            " (ASCII); for example Anna-Muller"]),
        ("id,image,vars.person\n,,x\n", [
            "2: columns id, image and embedding: none is given: a row needs one of them"]),
        ("id,embedding,image\nada,x.npy,d\nbob,bob.jpg,\n", [
            "2: column image: 'd': missing file",
            "2: column embedding: 'x.npy': missing file",
            "3: column embedding: 'bob.jpg': must be a .safetensors or .npy file"]),
        ("id,image,embedding\nada,faces\\ada.jpg,ada.npy\n", [
            "2: column image: 'faces\\\\ada.jpg': missing file; write / between folders, not \\"]),
        ("id,embedding,face,landmarks,consent.expires,sampling.fps\nada,ada.npy,left,1 2 3,soon,x\n", [
            "2: column landmarks: '1 2 3': must be 5 points [x, y] in pixels of the picture: eyes, nose, mouth corners",
            "2: column face: 'left': must be 'largest', 'only' or a number from 1, from the left",
            "2: column sampling.fps: 'x': must be a number from 1/2000 (0.0005) to 240",
            "2: column consent.ref: missing: text that says where the consent is filed",
            "2: column consent.expires: 'soon': must be a date such as 2027-01-31"]),
        ("id,vars.person\nada,x\n", ["2: subject ada: missing 'image': or an 'embedding'"]),
        ("id,image\nada,ada.jpg\n", [
            "2: subject ada: no 'embedding' given, and the pipeline has no 'face:' models to find them"]),
    ],
)  # fmt: skip
def test_wrong_tables(people: Path, complain: Complain, table: str, lines: list[str]) -> None:
    people.write_text(table)
    told = complain(TEXT)
    assert len(told) == len(lines)
    for line, start in zip(told, lines, strict=True):
        assert line.startswith(f"faces/people.csv:{start}")


@pytest.mark.parametrize(
    ("subjects", "line"),
    [
        ("{from: none.csv}", "m.yaml:4: subjects.from: 'none.csv': missing file"),
        ("{from: d.csv}", "m.yaml:4: subjects.from: 'd.csv': not a regular file"),
        ("{from: faces/people.csv, vars: {a b: x}}", "m.yaml:4: subjects.vars.'a b': 'a b': a var's name is"),
        ("{from: faces/people.csv, id: x}", "m.yaml:4: subjects.id: unknown key; allowed: from, face,"),
    ],
)
def test_wrong_entries(folder: Path, people: Path, complain: Complain, subjects: str, line: str) -> None:
    people.write_text("id,embedding\nada,ada.npy\n")
    (folder / "d.csv").mkdir()
    (told,) = complain(HEAD + f"subjects: {subjects}\n" + PROMPTS)
    assert told.startswith(line)


def test_shots_name_people_by_id(folder: Path, people: Path, load: Load) -> None:
    people.write_text("id,embedding\nada,ada.npy\nbob,bob.npy\n")
    (folder / "t.csv").write_text("subject;prompt\nbob;p\n")
    assert [shot.id for shot in load(TEXT + "shots: {from: t.csv}\n").shots] == ["bob/p/1"]


def test_eight_hundred_people(folder: Path, people: Path) -> None:
    rows = (f"e{i},ada.jpg,ada.npy,woman {i},R{i},2027-01-31,team {i}\n" for i in range(800))
    people.write_text("id,image,embedding,vars.person,consent.ref,consent.expires,labels.team\n" + "".join(rows))
    (folder / "m.yaml").write_text(TEXT)
    campaign = load_campaign("m.yaml")
    assert len(campaign.shots) == 800
    assert (campaign.shots[799].id, campaign.shots[799].text) == ("e799/p/1", "A woman 799 runs.")
    assert len({id(shot.sampling) for shot in campaign.shots}) == 1
