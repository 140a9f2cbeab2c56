"""``shots: {from: shots.csv}``."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.helpers.manifests import BOTH, HEAD, PROMPTS, Complain, Load

TEXT = HEAD + BOTH + PROMPTS + "shots: {from: t.csv}\n"
COLUMNS = (
    "allowed: subject, prompt, prompt_text, takes, seed, priority, start_image, sampling.width, sampling.height,"
    " sampling.num_frames, sampling.fps, sampling.num_inference_steps, sampling.scheduler, sampling.flow_shift,"
    " sampling.sigma_schedule, sampling.sigmas, sampling.timesteps, sampling.guidance_scale,"
    " sampling.guidance_scale_2, sampling.boundary_ratio, sampling.guidance_scale_i, sampling.ip_scale,"
    " sampling.ref_scale, sampling.negative_prompt, sampling.reference_latent, sampling.reference_size,"
    " sampling.identity_window, sampling.ref_blocks, sampling.seed"
)

IGNORED = "a name that starts with _ is ignored"


def p_id(words: str, text: str) -> str:
    return f"{words}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def test_a_table(folder: Path, load: Load) -> None:
    (folder / "t.csv").write_text(
        "\ufeffsubject,prompt,prompt_text,takes,seed,priority,sampling.fps,sampling.negative_prompt,"
        "sampling.guidance_scale_i,sampling.seed\r\n"
        "ada,run,,2,7,1,24,no,null,\r\n"
        "\r\n"
        '*,,"A {person}\r\nsings.",,,,,,,5\r\n'
        "bob,*,,,,,,,,\r\n"
    )
    campaign = load(TEXT)
    sings = p_id("a-person-sings", "A {person}\r\nsings.")
    assert [(s.id, s.seed, s.priority, s.sampling.fps) for s in campaign.shots] == [
        ("ada/run/1", 7, 1, 24),
        ("ada/run/2", 8, 1, 24),
        (f"ada/{sings}/1", 5, 0, 16),
        (f"bob/{sings}/1", 5, 0, 16),
        ("bob/walk/1", 42, 0, 16),
        ("bob/run/1", 42, 0, 16),
    ]
    assert campaign.shots[0].sampling.negative_prompt == "no"
    assert [s.sampling.guidance_scale_i for s in campaign.shots[:3]] == [None, None, None]
    assert campaign.shots[3].text == "A man\r\nsings."
    assert [p.id for p in campaign.prompts] == ["walk", "run", sings]


def test_prompts_may_all_be_in_the_table(folder: Path, load: Load) -> None:
    (folder / "t.csv").write_text("subject,prompt_text\nada,x\nada,y\n")
    assert [s.text for s in load(TEXT.replace(PROMPTS, "")).shots] == ["x", "y"]


@pytest.mark.parametrize(
    ("table", "lines"),
    [
        ("", ["t.csv:1: is empty: the first row names the columns"]),
        ("subject,prompt\n", ["t.csv:1: has no rows: at least one shot must result"]),
        ("\n\n  ,\nsubject,prompt\nada,none\n", [
            "t.csv:5: column prompt: 'none': no such prompt; allowed: walk, run"]),
        ("subject,promt,x y\nada,run,1\n", [
            f"t.csv:1: column 'promt': unknown column; did you mean 'prompt'? ({COLUMNS}); {IGNORED}",
            f"t.csv:1: column 'x y': unknown column; {COLUMNS}; {IGNORED}",
            "t.csv:1: column prompt or prompt_text: missing"]),
        ("prompt,prompt\nrun,run\n", [
            "t.csv:1: column prompt: given twice", "t.csv:1: column subject: missing"]),
        ("subject,prompt,prompt_text\nada,run,x\nada,,\n,run,\nadda,run,\n", [
            "t.csv:2: column prompt: run: another text or spelling is given in the manifest: a prompt has one text",
            "t.csv:3: columns prompt and prompt_text: neither is given: a row needs an id, a text, or both",
            "t.csv:4: column subject: empty: must be a subject's id, or * for all",
            "t.csv:5: column subject: 'adda': no such subject; did you mean 'ada'? (allowed: ada, bob)"]),
        ("subject,prompt,takes,seed,priority,sampling.width\nada,run,0,-1,x,65\nada,run,1.0,yes,,\n", [
            "t.csv:2: column takes: '0': must be a whole number from 1",
            "t.csv:2: column seed: '-1': must be a whole number from 0 to 2^63-1",
            "t.csv:2: column priority: 'x': must be a whole number; higher comes first",
            "t.csv:2: column sampling.width: '65': must be a multiple of 16 from 16 to 4096",
            "t.csv:3: column takes: '1.0': must be a whole number from 1",
            "t.csv:3: column seed: 'yes': must be a whole number from 0 to 2^63-1"]),
        ("subject,prompt\nada\n\"a\nb\",run\nada,run,1\n", [
            "t.csv:2: columns prompt and prompt_text: neither is given: a row needs an id, a text, or both",
            "t.csv:3: column subject: 'a\\nb': no such subject; allowed: ada, bob",
            "t.csv:5: row has 3 cells, the header has 2: '1'"]),
        ("subject,prompt\nada,run\nada,*\n", [
            "t.csv:3: row: ada/run with seed 42 is given twice, first on line 2"]),
        ("subject,prompt_text\nada,a {b}\nada,{c.d}\n", [
            "t.csv:2: row: {b}: subject 'ada' has no such var; its vars: person; or write {b|a default}",
            "t.csv:3: column prompt_text: '{c.d}': only {name} and {name|default} fields work; write {{ and }} for"
            " braces"]),
        ("subject,prompt_text\nada,a {b}\n", [
            "t.csv:2: row: {b}: subject 'ada' has no such var; its vars: person; or write {b|a default}"]),
        ("subject,prompt,takes\nada,run,9999999\n", [
            "t.csv:2: row: makes more than 1000000 shots: split the manifest"]),
        ("subject,prompt\nada,\"run\n", ["t.csv:2: not a valid table: unexpected end of data"]),
        ("subject,prompt\nada,ru\x00n\n", ["t.csv:2: holds the control character '\\x00'"]),
        ("subject,prompt,sampling.guidance_scale_i,sampling.fps\nada,run,~,~\n", [
            "t.csv:2: column sampling.fps: '~': must be a value (leave the key out to keep the setting)"]),
    ],
)  # fmt: skip
def test_wrong_tables(folder: Path, complain: Complain, table: str, lines: list[str]) -> None:
    (folder / "t.csv").write_text(table)
    assert complain(TEXT) == lines


def test_an_adhoc_id_that_is_taken(folder: Path, complain: Complain) -> None:
    (folder / "t.csv").write_text("subject,prompt_text\nada,x\n")
    assert complain(TEXT.replace("walk:", f"{p_id('x', 'x').upper()}:")) == [
        f"t.csv:2: column prompt_text: its id would be {p_id('x', 'x')}, which is another prompt's"
    ]


def test_all_prompts_of_none(folder: Path, complain: Complain) -> None:
    (folder / "t.csv").write_text("subject,prompt\nada,*\n")
    assert complain(TEXT.replace(PROMPTS, "")) == ["t.csv:2: column prompt: '*': no such prompt; allowed: none"]


def test_not_utf8(folder: Path, complain: Complain) -> None:
    (folder / "t.csv").write_bytes(b"subject,prompt\nada,\xff\n")
    assert complain(TEXT) == ["t.csv:2: not UTF-8 text; in Excel, save it as 'CSV UTF-8' or as .xlsx"]


def test_rows_written_alike_share_their_settings_and_not_their_mistakes(
    folder: Path, load: Load, complain: Complain
) -> None:
    """A campaign of 100,000 shots has a few settings, not 100,000."""
    rows = "subject,prompt,seed,sampling.fps\n*,walk,,24\n*,run,,24\nada,walk,7,24\nada,run,7,{}\n"
    (folder / "t.csv").write_text(rows.format("12"))
    shots = load(TEXT).shots
    assert [shot.sampling.fps for shot in shots] == [24, 24, 24, 24, 24, 12]
    assert len({id(shot.sampling) for shot in shots}) == 3
    (folder / "t.csv").write_text(rows.replace("24", "fast").format("fast"))
    assert [line.partition(": ")[0] for line in complain(TEXT)] == [f"t.csv:{line}" for line in (2, 3, 4, 5)]


ROWS = """\
subject,prompt,prompt_text
bob,beach,
ada,beach,A {person} walks along a beach.
bob,run,A {person} runs.
*,,A {person} sings.
ada,*,
"""


def test_a_row_may_give_id_and_text(folder: Path, load: Load) -> None:
    (folder / "t.csv").write_text(ROWS)
    campaign = load(TEXT)
    sings = p_id("a-person-sings", "A {person} sings.")
    assert [(shot.id, shot.text) for shot in campaign.shots] == [
        ("bob/beach/1", "A man walks along a beach."),
        ("ada/beach/1", "A woman walks along a beach."),
        ("bob/run/1", "A man runs."),
        (f"ada/{sings}/1", "A woman sings."),
        (f"bob/{sings}/1", "A man sings."),
        ("ada/walk/1", "A woman walks."),  # * means the manifest's prompts
        ("ada/run/1", "A woman runs."),
    ]
    assert [prompt.id for prompt in campaign.prompts] == ["walk", "run", "beach", sings]


def test_an_edited_text_keeps_the_id_that_its_row_gives(folder: Path, load: Load) -> None:
    (folder / "t.csv").write_text(ROWS)
    before = {shot.text: shot.name for shot in load(TEXT).shots}
    (folder / "t.csv").write_text(ROWS.replace("walks along a", "runs on a").replace("sings", "hums"))
    after = {shot.text: shot.name for shot in load(TEXT).shots}
    assert after["A man runs on a beach."] == before["A man walks along a beach."] == "bob/beach-t01"
    assert after["A man hums."] != before["A man sings."]
    assert after["A man runs."] == before["A man runs."]


def test_prompts_of_a_table_alone_are_known_by_id(folder: Path, load: Load) -> None:
    (folder / "t.csv").write_text("subject,prompt,prompt_text\nada,a,x\nada,b,y\nbob,a,\n")
    assert [s.id for s in load(TEXT.replace(PROMPTS, "")).shots] == ["ada/a/1", "ada/b/1", "bob/a/1"]


@pytest.mark.parametrize(
    ("rows", "lines"),
    [
        ("ada,a,x\nbob,a,y\n", [
            "t.csv:3: column prompt: a: another text or spelling is given on line 2: a prompt has one text"]),
        ("ada,a,x\nbob,A,x\n", [
            "t.csv:3: column prompt: A: another text or spelling is given on line 2: a prompt has one text"]),
        ("ada,RUN,A {person} runs.\n", [
            "t.csv:2: column prompt: RUN: another text or spelling is given in the manifest: a prompt has one text"]),
        ("ada,my beach,x\n", [
            "t.csv:2: column prompt: 'my beach': an id is a letter or digit, then up to 99 letters, digits, '.', '_' or"
            " '-' (ASCII); for example my-beach"]),
        ("ada,*,x\n", [
            "t.csv:2: column prompt: '*': an id is a letter or digit, then up to 99 letters, digits, '.', '_' or '-'"
            " (ASCII)"]),
        ("ada,a,{x\nbob,a,\n", [
            "t.csv:2: column prompt_text: a single '{': write {{ and }} for braces",
            "t.csv:3: column prompt: 'a': no such prompt; allowed: walk, run"]),
        ("ada,a,x\nbob,b,\n", ["t.csv:3: column prompt: 'b': no such prompt; allowed: walk, run, a"]),
    ],
)  # fmt: skip
def test_wrong_ids_and_texts(folder: Path, complain: Complain, rows: str, lines: list[str]) -> None:
    (folder / "t.csv").write_text("subject,prompt,prompt_text\n" + rows)
    assert complain(TEXT) == lines


def test_a_text_whose_prompt_is_wrong_in_the_manifest(folder: Path, complain: Complain) -> None:
    (folder / "t.csv").write_text("subject,prompt,prompt_text\nada,run,x\n")
    assert complain(TEXT.replace("'A {person} runs.'", "3")) == [
        'm.yaml:5: prompts.run: 3: must be text; quote it: "3"'
    ]


@pytest.mark.parametrize("name", ["{subject}/{prompt}-t{take:02}", "{prompt}/{subject}"])
def test_texts_that_version_0_1_rendered_keep_their_ids(folder: Path, load: Load, name: str) -> None:
    """Their finished shots stay done; ids of texts that are new are made of words."""
    (folder / "t.csv").write_text("subject,prompt_text\nada,x\nada,y\n")
    text = TEXT + f"name: '{name}'\n"
    words = [p_id("x", "x"), p_id("y", "y")]
    assert [prompt.id for prompt in load(text).prompts] == ["walk", "run", *words]
    earlier = p_id("p", "x")
    finished = folder / "out" / (name.format(subject="ada", prompt=earlier, take=1) + ".json")
    finished.parent.mkdir(parents=True)
    finished.write_text("{}")
    assert [prompt.id for prompt in load(text).prompts] == ["walk", "run", earlier, words[1]]
    finished.rename(finished.with_suffix(".mp4"))
    assert [prompt.id for prompt in load(text).prompts] == ["walk", "run", *words]
