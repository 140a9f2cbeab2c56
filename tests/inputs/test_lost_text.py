"""Words that YAML drops from unquoted texts are told; ordinary comments are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from lynx_parallel.inputs import yaml_lines
from tests.helpers.manifests import ADA, HEAD, LITE, Complain, Load

MESSAGE = "YAML dropped a part of an unquoted text; put the text in quotes"


def lost(load: Load, text: str) -> list[str]:
    campaign = load(text)
    assert {(n.kind, n.message) for n in campaign.notices} <= {("text-dropped", MESSAGE)}
    return [notice.example for notice in campaign.notices]


@pytest.mark.parametrize(
    ("prompts", "told"),
    [
        ("  p: A woman on track #1 runs.", ["m.yaml:6: prompts.p: '#1 runs.'"]),
        ("  p: A woman on track   #1 runs.  ", ["m.yaml:6: prompts.p: '#1 runs.'"]),
        ("  p:\n    text: A woman #blessed", ["m.yaml:7: prompts.p.text: '#blessed'"]),
        ("  p: A woman runs\n    over a hill\n    with dog #7 today", ["m.yaml:8: prompts.p: '#7 today'"]),
        ("  p: A woman in seat # 5 waves.", ["m.yaml:6: prompts.p: '# 5 waves.'"]),
        ("  p: Ä “wömän” #1", ["m.yaml:6: prompts.p: '#1'"]),
        ("  p: x\n  q: &Co meets ada.", ["m.yaml:7: prompts.q: '&Co'"]),
        ("  p: ! A woman runs.", ["m.yaml:6: prompts.p: '!'"]),
        ("  p: {text: x, sampling: {negative_prompt: bad hands #2\n    }}", [
            "m.yaml:6: prompts.p.sampling.negative_prompt: '#2'"]),
    ],
)  # fmt: skip
def test_lost_words_of_prompts(load: Load, prompts: str, told: list[str]) -> None:
    assert lost(load, HEAD + ADA + f"prompts:\n{prompts}\n") == told


@pytest.mark.parametrize(
    "prompts",
    [
        "  p: A woman runs.   # TODO",
        "  p: A woman runs. # a remark of one space",
        "  p: A woman runs. #TODO say where",
        "  p: A woman runs.  # 5 takes wanted",
        "  p: A woman runs. ## old",
        "  p: A woman runs. #",
        "  p: 'A woman on track #1' #1",
        '  p: "A woman on track #1" #1',
        "  p: |\n    A woman on track #1 runs.\n#1 of two",
        "  p: > #1\n    A woman runs.",
        "  p: A woman#1 runs.",
        "  # p: x #1\n  p: A woman runs.\n  #1",
        "  p: &a A woman runs.\n  q: *a",
        "  p: {text: A woman runs.} #1",
    ],
)
def test_ordinary_comments_are_not_reported(load: Load, prompts: str) -> None:
    assert lost(load, HEAD + ADA + f"prompts:\n{prompts}\n") == []


def test_other_texts(load: Load, folder: Path) -> None:
    """Vars, labels and consent may hold any words. In names and paths only a number looks like lost text."""
    text = (
        "version: 1\npipeline: lite.yaml #the small one\noutput: spring #2\n"
        "vars: {dog: Rex}   #all of them are dogs\n"
        "subjects:\n  ada:\n    embedding: faces/ada.npy  # her\n"
        "    vars:\n      team: Jets #7\n"
        "    labels: {a: b}\n    consent:\n      ref: release #14\n      scope: #web only\n"
        "prompts: {p: x}\nname: '{subject}'\n"
    )
    (folder / "spring").mkdir()
    assert lost(load, text) == [
        "m.yaml:3: output: '#2'",
        "m.yaml:9: subjects.ada.vars.team: '#7'",
        "m.yaml:12: subjects.ada.consent.ref: '#14'",
        "m.yaml:13: subjects.ada.consent.scope: '#web only'",
    ]


def test_the_pipeline_file_is_looked_at_too(load: Load, folder: Path) -> None:
    sampling = "sampling:\n  width: 64  #1\n  height: 48\n  num_frames: 9\n  negative_prompt: blur, watermark #tag\n"
    (folder / "lite.yaml").write_text(LITE.partition("sampling:")[0] + sampling)
    assert lost(load, HEAD + ADA + "prompts: {p: x}\n") == ["lite.yaml:9: sampling.negative_prompt: '#tag'"]


def test_both_loaders_agree(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    text = HEAD + ADA + "prompts:\r\n  p: Ä 😀 woman\r\n    on track #1 runs.\r\n"
    told = lost(load, text)
    assert told == ["m.yaml:7: prompts.p: '#1 runs.'"]
    monkeypatch.setattr(yaml_lines, "_LOADER", yaml_lines.yaml.SafeLoader)
    assert lost(load, text) == told


@pytest.mark.parametrize(
    ("prompts", "line", "comment"),
    [
        ("\n  p: A woman on track #1\n    runs.", 6, "'#1' on line 6"),
        (" {p: A woman #1 runs}", 5, "'#1 runs}' on line 5"),
    ],
)
def test_broken_yaml_after_a_comment_says_so(complain: Complain, prompts: str, line: int, comment: str) -> None:
    (told,) = complain(HEAD + ADA + f"prompts:{prompts}\n")
    assert told.startswith((f"m.yaml:{line}: not valid YAML: ", f"m.yaml:{line + 1}: not valid YAML: "))
    assert told.endswith(f"; {comment} is a comment: put a text that holds ' #' in quotes")
