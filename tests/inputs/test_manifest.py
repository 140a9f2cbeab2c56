"""Manifests: expansion, precedence, and every rule's error."""

from __future__ import annotations

import pickle
from datetime import date
from pathlib import Path

import pytest

from lynx_parallel.errors import InputErrors
from lynx_parallel.inputs import expand
from lynx_parallel.inputs.load import load_campaign
from lynx_parallel.inputs.manifest import Campaign
from lynx_parallel.inputs.shipped import shipped_dir, shipped_names
from tests.helpers.manifests import ADA, BOTH, HEAD, PROMPTS, Complain, Load
from tests.helpers.repository import REPOSITORY

ALLOWED_ID = "an id is a letter or digit, then up to 99 letters, digits, '.', '_' or '-' (ASCII)"


def brief(campaign: Campaign) -> list[tuple[str, int]]:
    return [(shot.id, shot.seed) for shot in campaign.shots]


@pytest.mark.parametrize("name", shipped_names("manifests"))
def test_every_shipped_manifest_loads(name: str) -> None:
    folder = shipped_dir("manifests")
    people = [f"subjects={folder / 'faces'}"] if name == "benchmark" else []  # the user names them
    assert load_campaign(folder / f"{name}.yaml", people).shots


def test_demo_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    campaign = load_campaign("demo")
    assert campaign.output == tmp_path / "renders" / "demo"
    assert [s.name for s in campaign.shots] == [
        "astronaut/pumpkin-t01",
        "astronaut/beach-t01",
        "drawn/pumpkin-t01",
        "drawn/beach-t01",
    ]
    assert campaign.save_latents
    (tmp_path / "demo").write_text("version: 1\n")  # a file of that name in the folder comes first
    with pytest.raises(InputErrors) as caught:
        load_campaign("demo")
    assert caught.value.lines[0].startswith("demo:1: pipeline: missing")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("demmo", "demmo: no such file, and no shipped manifest of that name; did you mean 'demo'? (shipped: "),
        ("none.yaml", "none.yaml: no such manifest"),
        ("faces/", "faces: a folder, not a manifest"),
        ("a/\udcff\n", "a/\\udcff\\n: no such manifest"),
        ("", ": no such file, and no shipped manifest"),
    ],
)
def test_no_such_manifest(folder: Path, name: str, said: str) -> None:
    with pytest.raises(InputErrors) as caught:
        load_campaign(name)
    assert len(caught.value.lines) == 1
    assert caught.value.lines[0].encode()
    assert said in caught.value.lines[0]


def test_default_is_every_subject_with_every_prompt(load: Load, folder: Path) -> None:
    campaign = load(HEAD + BOTH + PROMPTS)
    assert brief(campaign) == [
        ("ada/walk/1", 42),
        ("ada/run/1", 42),
        ("bob/walk/1", 42),
        ("bob/run/1", 42),
    ]
    shot = campaign.shots[2]
    assert (shot.text, shot.name, shot.priority, shot.take) == ("A man walks.", "bob/walk-t01", 0, 1)
    assert shot.prompt.text == "A {person} walks."
    assert campaign.output == folder / "out"
    assert campaign.path == folder / "m.yaml"
    assert campaign.pipeline_path == folder / "lite.yaml"
    assert [s.id for s in campaign.subjects] == ["ada", "bob"]
    assert pickle.loads(pickle.dumps(campaign)) == campaign
    assert len({shot.subject for shot in campaign.shots}) == 2


def test_a_subject_with_everything(load: Load, folder: Path) -> None:
    text = HEAD + (
        "subjects:\n  ada:\n    image: faces/ada.jpg\n    embedding: faces/ada.npy\n"
        "    landmarks: [[1, 2], [3, 4.5], [5, 6], [7, 8], [9, 10]]\n"
        "    consent: {ref: R1, scope: web, expires: '2027-01-31'}\n"
        "    labels: {a: x, b: 1, c: 1.5, d: true}\n"
        "prompts: {p: '{{x}} text'}\n"
    )
    subject = load(text).subjects[0]
    assert subject.image == folder / "faces" / "ada.jpg"
    assert subject.landmarks == ((1, 2), (3, 4.5), (5, 6), (7, 8), (9, 10))
    assert subject.consent is not None
    assert (subject.consent.ref, subject.consent.expires) == ("R1", date(2027, 1, 31))
    assert repr(subject.labels) == "{'a': 'x', 'b': 1, 'c': 1.5, 'd': True}"
    assert load(text).shots[0].text == "{x} text"
    assert load(text.replace("'2027-01-31'", "2027-01-31")).subjects[0] == subject


def test_precedence(load: Load) -> None:
    def scale(layers: list[str], forced: tuple[str, ...] = ()) -> float:
        campaign, subject, prompt, shot = layers
        text = HEAD + (
            f"sampling: {{{campaign}}}\n"
            f"subjects: {{ada: {{embedding: faces/ada.npy, sampling: {{{subject}}}}}}}\n"
            f"prompts: {{p: {{text: x, sampling: {{{prompt}}}}}}}\n"
            f"shots: [{{subject: ada, prompt: p, sampling: {{{shot}}}}}]\n"
        )
        return load(text, overrides=forced).shots[0].sampling.ip_scale

    given = [f"ip_scale: {i}" for i in (2, 3, 4, 5)]
    assert scale([""] * 4) == 1
    for last in range(4):
        assert scale([*given[: last + 1], *[""] * (3 - last)]) == last + 2
    assert scale(given, ("sampling.ip_scale=6",)) == 6


def test_null_guidance_overrides(load: Load) -> None:
    text = HEAD + "sampling: {guidance_scale_i: 3}\n" + ADA + "prompts: {p: x, q: {text: x, sampling:"
    text += " {guidance_scale_i: null}}}\n"
    assert [s.sampling.guidance_scale_i for s in load(text).shots] == [3.0, None]


@pytest.mark.parametrize(
    ("shots", "expected"),
    [
        ("[{subject: ada, prompt: run, seeds: [1, 7]}]", [("ada/run/1", 1), ("ada/run/2", 7)]),
        ("[{subject: ada, prompt: run, seeds: [1], takes: 1}]", [("ada/run/1", 1)]),
        ("[{subject: ada, prompt: run, takes: 2}]", [("ada/run/1", 42), ("ada/run/2", 43)]),
        (
            "[{subject: '*', prompt: run, takes: 1, sampling: {seed: 5}}]",
            [("ada/run/1", 5), ("bob/run/1", 5)],
        ),
        ("[{subject: ada, prompt: run, seeds: [9], sampling: {seed: 5}}]", [("ada/run/1", 9)]),
        (
            "[{subject: [bob, ada], prompt: [run, walk]}]",
            [("bob/run/1", 42), ("bob/walk/1", 42), ("ada/run/1", 42), ("ada/walk/1", 42)],
        ),
        (
            "[{subject: ada, prompt: run, seeds: [1]}, {subject: bob, prompt: run},"
            " {subject: '*', prompt: run, seeds: [3, 2]}]",
            [("ada/run/1", 1), ("bob/run/1", 42), ("ada/run/2", 3), ("ada/run/3", 2), ("bob/run/2", 3),
             ("bob/run/3", 2)],
        ),
        ("[{subject: ada, prompt: run, takes: 2, sampling: {seed: 9223372036854775806}}]",
         [("ada/run/1", 2**63 - 2), ("ada/run/2", 2**63 - 1)]),
    ],
)  # fmt: skip
def test_shots(load: Load, shots: str, expected: list[tuple[str, int]]) -> None:
    assert brief(load(HEAD + BOTH + PROMPTS + f"shots: {shots}\n")) == expected


@pytest.mark.parametrize(
    ("shots", "lines"),
    [
        (
            "[{subject: ada, prompt: run, seeds: [1, 2], takes: 3}]",
            ["m.yaml:6: shots[0].takes: 3: there are 2 seeds: give seeds or takes, or equally many"],
        ),
        (
            "\n  - {subject: '*', prompt: run}\n  - {subject: ada, prompt: '*'}",
            ["m.yaml:8: shots[1]: ada/run with seed 42 is given twice, first on line 7"],
        ),
        (
            "[{subject: ada, prompt: run, seeds: [1, 1]}]",
            ["m.yaml:6: shots[0]: ada/run with seed 1 is given twice, first on line 6"],
        ),
        (
            "[{subject: aba, prompt: [run, runn]}]",
            [
                "m.yaml:6: shots[0].subject: 'aba': no such subject; did you mean 'ada'? (subjects: ada, bob)",
                "m.yaml:6: shots[0].prompt[1]: 'runn': no such prompt; did you mean 'run'? (prompts: walk, run)",
            ],
        ),
        (
            "[{subject: ada, prompt: run, takes: 1000000000}]",
            ["m.yaml:6: shots[0]: makes more than 1000000 shots: split the manifest"],
        ),
        (
            "[{subject: ada, prompt: run, takes: 2, sampling: {seed: 9223372036854775807}}]",
            ["m.yaml:6: shots[0]: 2 takes from seed 9223372036854775807 pass 2^63-1"],
        ),
        (
            "[{subject: ada, prompt: run, takes: 0, priority: high, seeds: []}]",
            [
                "m.yaml:6: shots[0].seeds: a list: must be a list with at least one item",
                "m.yaml:6: shots[0].takes: 0: must be a whole number from 1, or seeds by take, such as {1: 42, 3: 99}",
                "m.yaml:6: shots[0].priority: 'high': must be a whole number; higher comes first",
            ],
        ),
        ("[{subject: no, prompt: []}]", [
            "m.yaml:6: shots[0].subject: no: must be an id, a list of ids, or \"*\" for all",
            "m.yaml:6: shots[0].prompt: a list: must be an id, a list of ids, or \"*\" for all",
        ]),
        ("[]", ["m.yaml:6: shots: is empty: must be a list with at least one entry, or {from: shots.csv}"]),
        ("7", ["m.yaml:6: shots: 7: must be a list with at least one entry, or {from: shots.csv}"]),
        ("", ["m.yaml:6: shots: null: must be a list with at least one entry, or {from: shots.csv}"]),
        ("{from: none.csv}", ["m.yaml:6: shots.from: 'none.csv': missing file"]),
        ("{from: faces}", ["m.yaml:6: shots.from: 'faces': not a regular file"]),
    ],
)  # fmt: skip
def test_wrong_shots(complain: Complain, shots: str, lines: list[str]) -> None:
    assert complain(HEAD + BOTH + PROMPTS + f"shots: {shots}\n") == lines


def test_shot_limit_counts_all_groups(load: Load, complain: Complain, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expand, "MAX_SHOTS", 3)
    text = HEAD + ADA + PROMPTS + "shots:\n- {subject: ada, prompt: run, takes: 3}\n"
    assert len(load(text).shots) == 3
    assert complain(text + "- {subject: ada, prompt: walk}\n") == [
        "m.yaml:8: shots[1]: makes more than 3 shots: split the manifest"
    ]


SUBJECT_CASES = [
    ("{}", ["m.yaml:4: subjects: is empty: must be a mapping of ids, with at least one"]),
    ("[ada]", ["m.yaml:4: subjects: a list: must be a mapping of ids, with at least one"]),
    ("{ada: faces/ada.jpg}", ["m.yaml:4: subjects.ada: 'faces/ada.jpg': must be a mapping (key: value)"]),
    ("{-ada: {embedding: faces/ada.npy}}", [f"m.yaml:4: subjects.'-ada': '-ada': {ALLOWED_ID}"]),
    ('{"ada\\n": {embedding: faces/ada.npy}}', [f"m.yaml:4: subjects.'ada\\n': 'ada\\n': {ALLOWED_ID}"]),
    ("{ädä: {embedding: faces/ada.npy}}", [f"m.yaml:4: subjects.'ädä': 'ädä': {ALLOWED_ID}"]),
    (
        "\n  ada: {embedding: faces/ada.npy}\n  ADA: {embedding: faces/ada.npy}",
        ["m.yaml:6: subjects.ADA: given twice, first as 'ada' on line 5 (case is ignored)"],
    ),
    (
        "\n  ada: {embedding: faces/ada.npy}\n  ada: {}",
        ["m.yaml:6: subjects.ada: given twice, first on line 5"],
    ),
    (
        "{ada: {embedding: faces/none.npy, image: faces}}",
        [
            "m.yaml:4: subjects.ada.image: 'faces': not a regular file",
            "m.yaml:4: subjects.ada.embedding: 'faces/none.npy': missing file",
        ],
    ),
    (
        "{ada: {embedding: faces/ada.jpg}}",
        ["m.yaml:4: subjects.ada.embedding: 'faces/ada.jpg': must be a .safetensors or .npy file"],
    ),
    (
        "{ada: {embedding: faces/ada.npy, landmarks: [[1, 2], [1, 2], [1, 2], [1, 2], [1, .nan]]}}",
        [
            "m.yaml:4: subjects.ada.landmarks: a list: must be 5 points [x, y] in pixels of the picture:"
            " eyes, nose, mouth corners"
        ],
    ),
    (
        "{ada: {embedding: faces/ada.npy, vars: {a b: x, c: 3, d: no, e: 2027-01-01, f: null}}}",
        [
            'm.yaml:4: subjects.ada.vars.c: 3: must be text; quote it: "3"',
            'm.yaml:4: subjects.ada.vars.d: no: must be text; quote it: "no"',
            'm.yaml:4: subjects.ada.vars.e: 2027-01-01: must be text; quote it: "2027-01-01"',
            "m.yaml:4: subjects.ada.vars.f: null: must be text",
        ],
    ),
    (
        "{ada: {embedding: faces/ada.npy, vars: {a b: x}}}",
        [
            "m.yaml:4: subjects.ada.vars.'a b': 'a b': a var's name is a letter or '_', then letters,"
            " digits or '_' (ASCII)"
        ],
    ),
    (
        "{ada: {embedding: faces/ada.npy, consent: {expires: soon}, labels: {x: [1]}, sampling: {seed: 1.0}}}",
        [
            "m.yaml:4: subjects.ada.sampling.seed: 1.0: must be a whole number from 0 to 2^63-1",
            "m.yaml:4: subjects.ada.consent.ref: missing: text that says where the consent is filed",
            "m.yaml:4: subjects.ada.consent.expires: 'soon': must be a date such as 2027-01-31",
            "m.yaml:4: subjects.ada.labels.x: a list: must be text, a number, true or false",
        ],
    ),
    (
        "{ada: {image: faces/ada.jpg}}",
        ["m.yaml:4: subjects.ada: no 'embedding' given, and the pipeline has no 'face:' models to find them"],
    ),
    ("{from: faces/*.gif}", ["m.yaml:4: subjects.from: 'faces/*.gif': matches no file"]),
    ("{from: 3}", ['m.yaml:4: subjects.from: 3: must be text; quote it: "3"']),
    (
        "{from: faces/*, x: 1}",
        ["m.yaml:4: subjects.x: unknown key; allowed: from, face, vars, sampling, consent, labels"],
    ),
    (
        "{from: 'faces/a*'}",
        ["m.yaml:4: subjects.from: 'ada.jpg' and 'ada.png' give the same id 'ada'; rename one of them"],
    ),
]


@pytest.mark.parametrize(("subjects", "lines"), SUBJECT_CASES)
def test_wrong_subjects(complain: Complain, subjects: str, lines: list[str]) -> None:
    Path("faces/ada.png").write_bytes(b"png")
    said = complain(HEAD + f"subjects: {subjects}\nprompts: {{p: x}}\n")
    if "from: 'faces/a*'" in subjects:
        said = said[:1]
    assert said == lines


def test_subjects_from_a_folder(folder: Path, complain: Complain, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "faces" / "a b.jpg").write_bytes(b"x")
    (folder / "faces" / "dir.jpg").mkdir()
    text = HEAD + "subjects: {from: faces/*.jpg}\nprompts: {p: x}\n"
    gap = "no 'embedding' given, and the pipeline has no 'face:' models to find them"
    assert complain(text) == [
        f"m.yaml:4: subjects.a-b: {gap}",
        f"m.yaml:4: subjects.ada: {gap}",
        f"m.yaml:4: subjects.bob: {gap}",
    ]
    (folder / "faces" / "a b.jpg").unlink()
    monkeypatch.setattr("lynx_parallel.inputs.load.face_gaps", lambda subject, pipeline: None)
    campaign = load_campaign("m.yaml")
    assert [(s.id, s.image) for s in campaign.subjects] == [
        ("ada", folder / "faces" / "ada.jpg"),
        ("bob", folder / "faces" / "bob.jpg"),
    ]


def test_pictures_are_needed_for_the_ref_adapter(folder: Path, load: Load, complain: Complain) -> None:
    text = HEAD.replace("lite.yaml", "demo-tiny") + BOTH.replace(", bob: {", ",\n bob: {image: faces/bob.jpg, ")
    text = text + "prompts: {p: x}\n"
    missing = "m.yaml:4: subjects.ada: missing 'image': this pipeline's reference branch sees it"
    assert complain(text) == [missing]  # bob's face is found in the picture
    one = text + "shots: [{subject: bob, prompt: p}]\n"
    assert len(load(one).shots) == 1  # ada has no shot and may stay incomplete
    faceless = (REPOSITORY / "pipelines" / "demo-tiny.yaml").read_text().replace("face: {", "#")
    (folder / "faceless.yaml").write_text(faceless)
    gap = "given, and the pipeline has no 'face:' models to find them"
    assert complain(text.replace("demo-tiny", "faceless.yaml")) == [
        missing,
        f"m.yaml:5: subjects.bob: no 'landmarks' {gap}",
    ]
    bare = text.replace("demo-tiny", "faceless.yaml").replace("embedding: faces/bob.npy, ", "")
    assert complain(bare) == [missing, f"m.yaml:5: subjects.bob: no 'embedding' and 'landmarks' {gap}"]


PROMPT_CASES = [
    ("", ["m.yaml:5: prompts: null: must be a mapping of ids, with at least one"]),
    ("{}", ["m.yaml:5: prompts: is empty: must be a mapping of ids, with at least one"]),
    ("{p: yes}", ['m.yaml:5: prompts.p: yes: must be text; quote it: "yes"']),
    ("{p: 12}", ['m.yaml:5: prompts.p: 12: must be text; quote it: "12"']),
    ("{p: }", ["m.yaml:5: prompts.p: null: must be text, {text: …} or {file: …}"]),
    ("{p: []}", ["m.yaml:5: prompts.p: a list: must be text, {text: …} or {file: …}"]),
    ("{p: ' '}", ["m.yaml:5: prompts.p: the prompt is empty"]),
    ("{p: {text: ''}}", ["m.yaml:5: prompts.p.text: the prompt is empty"]),
    ("{p: {}}", ["m.yaml:5: prompts.p: a mapping: give exactly one of text and file"]),
    ("{p: {text: a, file: b}}", ["m.yaml:5: prompts.p: a mapping: give exactly one of text and file"]),
    ("{p: {file: none.txt}}", ["m.yaml:5: prompts.p.file: 'none.txt': missing file"]),
    ("{p: {file: faces}}", ["m.yaml:5: prompts.p.file: 'faces': is a folder, not a file"]),
    ("{p: {file: latin.txt}}", ["m.yaml:5: prompts.p.file: 'latin.txt': not UTF-8 text"]),
    ("{p: {file: blank.txt}}", ["m.yaml:5: prompts.p.file: the prompt is empty"]),
    (
        "{p: 'a {persn} b'}",
        ["m.yaml:5: prompts.p: {persn}: subject 'ada' has no such var; did you mean 'person'? (its vars: person,"
         " hat); or write {persn|a default}"],
    ),
    ("{p: '{hat}'}", ["m.yaml:5: prompts.p: empty once the vars of subject 'ada' are filled in"]),
    *(
        (f"{{p: 'a {field} b'}}", [f"m.yaml:5: prompts.p: '{field}': only {{name}} and {{name|default}} fields work;"
                                   " write {{ and }} for braces"])
        for field in ("{person.x}", "{person[0]}", "{}", "{0}", "{a b}", "{ person}")
    ),
    ("{p: '{person!r}'}", ["m.yaml:5: prompts.p: '{person!r}': only {name} and {name|default} fields work; write {{"
                           " and }} for braces"]),
    ("{p: '{person:>9}'}", ["m.yaml:5: prompts.p: '{person:>9}': only {name} and {name|default} fields work; write"
                            " {{ and }} for braces"]),
    ("{p: 'a } b'}", ["m.yaml:5: prompts.p: a single '}': write {{ and }} for braces"]),
    ("{p: 'a { b'}", ["m.yaml:5: prompts.p: a single '{': write {{ and }} for braces"]),
    ("{'p q': x}", [f"m.yaml:5: prompts.'p q': 'p q': {ALLOWED_ID}"]),
    ("{p: x, P: y}", ["m.yaml:5: prompts.P: given twice, first as 'p' on line 5 (case is ignored)"]),
]  # fmt: skip


@pytest.mark.parametrize(("prompts", "lines"), PROMPT_CASES)
def test_wrong_prompts(folder: Path, complain: Complain, prompts: str, lines: list[str]) -> None:
    (folder / "latin.txt").write_bytes(b"caf\xe9")
    (folder / "blank.txt").write_text(" \n")
    subjects = "subjects: {ada: {embedding: faces/ada.npy, vars: {person: x, hat: ''}}}\n"
    assert complain(HEAD + subjects + f"prompts: {prompts}\n") == [line.replace(":5:", ":5:") for line in lines]


def test_prompt_forms(folder: Path, load: Load) -> None:
    (folder / "p.txt").write_bytes("\ufeffA {person} in a café.\n".encode())
    prompts = "prompts:\n  a: {file: p.txt}\n  b: {text: '{{{person}}}'}\n  c: |\n    two\n    lines\n  no: x\n"
    texts = [s.text for s in load(HEAD + ADA + prompts).shots]
    assert texts == ["A woman in a café.", "{woman}", "two\nlines", "x"]


def test_values_of_vars_are_not_filled_in_again(load: Load) -> None:
    text = HEAD + "subjects: {ada: {embedding: faces/ada.npy, vars: {a: '{b}', b: x}}}\nprompts: {p: '{a}'}\n"
    assert load(text).shots[0].text == "{b}"


TOP_CASES = [
    ("version: 1", "", ["m.yaml:1: version: missing: must be 1"]),
    ("version: 1", "version: true", ["m.yaml:1: version: true: must be 1"]),
    ("version: 1", "version: 1.0", ["m.yaml:1: version: 1.0: must be 1"]),
    (
        "pipeline: lite.yaml",
        "",
        ["m.yaml:1: pipeline: missing: the name of a shipped pipeline, or the path of a pipeline file"],
    ),
    ("pipeline: lite.yaml", "pipeline: no.yaml", ["m.yaml:2: pipeline: 'no.yaml': missing file"]),
    ("pipeline: lite.yaml", "pipeline: ./faces", ["m.yaml:2: pipeline: './faces': not a regular file"]),
    ("pipeline: lite.yaml", "pipeline: 1", ['m.yaml:2: pipeline: 1: must be text; quote it: "1"']),
    ("output: out", "", ["m.yaml:1: output: missing: the folder for the videos, relative to this file"]),
    ("output: out", "output: ' '", ["m.yaml:3: output: ' ': must be text that is not empty"]),
    ("output: out", "output: m.yaml", ["m.yaml:3: output: 'm.yaml': not a folder"]),
    (
        "output: out",
        "outptu: out",
        [
            "m.yaml:1: output: missing: the folder for the videos, relative to this file",
            "m.yaml:3: outptu: unknown key; did you mean 'output'? (allowed: version, pipeline, output, sampling,"
            " video, vars, subjects, prompts, variants, shots, save_latents, faces, takes, scorers, quality, name)",
        ],
    ),
    (
        "output: out",
        "output: out\nfaces: public",
        [
            "m.yaml:4: faces: 'public': must be 'private' (only you can read the face crops) or 'inherit' "
            "(whoever can read the output folder)"
        ],
    ),
    ("output: out", "output: out\nsave_latents: 1", ["m.yaml:4: save_latents: 1: must be true or false"]),
]


@pytest.mark.parametrize(("old", "new", "lines"), TOP_CASES)
def test_wrong_top_level(complain: Complain, old: str, new: str, lines: list[str]) -> None:
    assert complain(HEAD.replace(old, new).lstrip("\n") + ADA + "prompts: {p: x}\n") == lines


def test_missing_sections(complain: Complain) -> None:
    assert complain("version: 1\npipeline: lite.yaml\noutput: out\n") == [
        "m.yaml:1: subjects: missing: a mapping id: {image: …}, or {from: faces/*.jpg}",
        "m.yaml:1: prompts: missing: a mapping id: text",
    ]


def test_all_mistakes_at_once_sorted_by_file_and_line(folder: Path, complain: Complain) -> None:
    (folder / "lite.yaml").write_text("version: 1\nmodel: {base: demo:tiny, adapters: 1}\nvideo: {crf: -1}\n")
    lines = complain(
        HEAD + "sampling: {widht: 64}\n" + ADA.replace("person", "persn") + PROMPTS + "name: /x\n",
        overrides=["video.crf=x"],
        only=["none"],
    )
    assert [line.split(": ")[0] for line in lines] == [
        "--set video.crf=x",
        "lite.yaml:2",
        "lite.yaml:3",
        "m.yaml:4",
    ]
    lines = complain(HEAD + ADA.replace("person", "persn") + PROMPTS + "name: x\n")
    assert [line.split(": ")[0] for line in lines] == ["lite.yaml:2", "lite.yaml:3", "m.yaml:5", "m.yaml:5"]


def test_a_line_stays_one_line(complain: Complain) -> None:
    text = HEAD + 'subjects: {ada: {embedding: faces/ada.npy, vars: {"a\\nb": x}}}\nprompts: {p: "{c}"}\n'
    assert (
        complain(text)[-1]
        == "m.yaml:5: prompts.p: {c}: subject 'ada' has no such var; its vars: a\\nb; or write {c|a default}"
    )


def test_many_mistakes_are_cut_short(complain: Complain) -> None:
    text = HEAD + ADA + "prompts:\n" + "".join(f"  p{i}: 1\n" for i in range(300))
    lines = complain(text)
    assert len(lines) == 101
    assert lines[-1] == "m.yaml:106: … and 200 more mistakes from here on"


def test_paths_are_shown_as_given_outside_the_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "m.yaml").write_text("version: 2\n")
    monkeypatch.chdir(folder / "faces")
    with pytest.raises(InputErrors) as caught:
        load_campaign("../m.yaml")
    assert all(line.startswith("../m.yaml:1: ") for line in caught.value.lines)
    monkeypatch.chdir(folder)
    with pytest.raises(InputErrors) as caught:
        load_campaign(folder / "m.yaml")
    assert all(line.startswith("m.yaml:1: ") for line in caught.value.lines)


@pytest.mark.parametrize(
    ("pipeline", "campaign", "overrides", "expected"),
    [
        ("", "", [], ("h264", 18)),
        ("video: {crf: 30, codec: h265}\n", "", [], ("h265", 30)),
        ("video: {crf: 30, codec: h265}\n", "video: {crf: 24}\n", [], ("h265", 24)),
        ("video: {crf: 30, codec: h265}\n", "video: {crf: 18}\n", [], ("h265", 18)),  # given, though the default
        ("video: {crf: 30, codec: h265}\n", "video: {codec: h264}\n", ["video.crf=3"], ("h264", 3)),
        ("", "video: {crf: 24}\n", ["video.crf=3"], ("h264", 3)),
        ("", "video: {}\n", [], ("h264", 18)),
    ],
)
def test_video_settings_of_a_campaign(
    load: Load, folder: Path, pipeline: str, campaign: str, overrides: list[str], expected: tuple[str, int]
) -> None:
    with (folder / "lite.yaml").open("a") as file:
        file.write(pipeline)
    video = load(HEAD + campaign + ADA + PROMPTS, overrides=overrides).pipeline.video
    assert (video.codec, video.crf) == expected


@pytest.mark.parametrize(
    ("video", "line"),
    [
        ("{crf: 52}", "m.yaml:4: video.crf: 52: must be a whole number from 0 to 51"),
        ("{crf: null}", "m.yaml:4: video.crf: null: must be a whole number from 0 to 51"),
        ("{crv: 18}", "m.yaml:4: video.crv: unknown key; did you mean 'crf'?"),
        ("18", "m.yaml:4: video: 18: must be a mapping (key: value)"),
    ],
)
def test_wrong_video_settings(complain: Complain, video: str, line: str) -> None:
    [found] = complain(HEAD + f"video: {video}\n" + ADA + PROMPTS)
    assert found.startswith(line)
