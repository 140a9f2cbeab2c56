"""The site file: where it is looked for, its mistakes, and its rules."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lynx_parallel.errors import InputErrors
from lynx_parallel.inputs import site
from lynx_parallel.inputs.licences import licence_mistakes, licence_of
from lynx_parallel.inputs.pipeline_files import load_pipeline
from lynx_parallel.inputs.recognizers import Recognizer
from lynx_parallel.inputs.site import Site, load_site, refuse_calls


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(site, "SITE_FILE", tmp_path / "etc" / "site.yaml")
    monkeypatch.setenv("LYNX_SITE", str(tmp_path / "own.yaml"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "own.yaml"


def test_no_site_file_no_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site, "SITE_FILE", tmp_path / "site.yaml")
    assert load_site() == Site()
    refuse_calls()


def test_rules(file: Path) -> None:
    file.write_text("version: 1\nconsent: required\nlicences: commercial\nlicence_of: {/m/x: MIT}\n")
    found = load_site()
    assert (found.path, found.consent_required, found.commercial, found.licence_of) == (
        file,
        True,
        True,
        {"/m/x": "MIT"},
    )
    assert len(found.digest) == 64
    assert str(found) == "consent required, licences for commercial use"
    assert found.lacks_consent(None) == "no consent; own.yaml requires it"
    assert found.lacks_consent({"ref": "x"}) == ""
    with pytest.raises(InputErrors, match="LynxPipeline cannot follow these rules"):
        refuse_calls()


def test_the_administrators_file_wins(file: Path) -> None:
    file.write_text("version: 1\n")
    etc = site.SITE_FILE
    etc.parent.mkdir()
    etc.write_text("version: 1\nconsent: required\n")
    assert load_site().path == etc
    assert load_site().consent_required


@pytest.mark.parametrize("kind", ["folder", "broken link", "mistake"])
def test_the_administrators_file_is_never_skipped(file: Path, kind: str) -> None:
    file.write_text("version: 1\n")
    etc = site.SITE_FILE
    etc.parent.mkdir()
    if kind == "folder":
        etc.mkdir()
    elif kind == "broken link":
        etc.symlink_to("nowhere")
    else:
        etc.write_text("version: 1\nconsnt: required\n")
    with pytest.raises(InputErrors):
        load_site()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (None, "own.yaml: "),
        ("version: 1\nconsent: yes\n", "own.yaml:2: consent: yes: must be 'required' or 'optional'"),
        ("version: 1\nlicenses: commercial\n", "own.yaml:2: licenses: unknown key; did you mean 'licences'?"),
        ("version: 1\nsafety: {checker: nowhere}\n", "own.yaml:2: safety.checker: 'nowhere': no such folder"),
        ("version: 1\nsafety: {checker: half}\n",
         "own.yaml:2: safety.checker: 'half': has no preprocessor_config.json"),
        ("version: 1\nsafety: {checker: other}\n",
         "own.yaml:2: safety.checker: 'other': no label is called nsfw or unsafe"),
        ("version: 1\nsafety: {checker: good, labels: [gore]}\n",
         "own.yaml:2: safety.labels: 'gore': no label of the classifier (labels: normal, NSFW)"),
        ("version: 1\nsafety: {checker: good, threshold: 2}\n",
         "own.yaml:2: safety.threshold: 2: must be a number above 0, at most 1"),
    ],
)  # fmt: skip
def test_mistakes(file: Path, text: str | None, line: str) -> None:
    for name, labels in (("good", ["normal", "NSFW"]), ("other", ["cat", "dog"]), ("half", ["a"])):
        (file.parent / name).mkdir()
        (file.parent / name / "config.json").write_text(json.dumps({"id2label": dict(enumerate(labels))}))
        if name != "half":
            for other in ("preprocessor_config.json", "model.safetensors"):
                (file.parent / name / other).touch()
    if text is not None:
        file.write_text(text)
    with pytest.raises(InputErrors) as error:
        load_site()
    assert str(error.value).startswith(line)


def test_the_safety_checker(file: Path) -> None:
    folder = file.parent / "checker"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"id2label": {"0": "normal", "1": "NSFW", "2": "gore"}}))
    for name in ("preprocessor_config.json", "model.safetensors"):
        (folder / name).write_text(name)
    file.write_text("version: 1\nsafety: {checker: checker}\n")
    safety = load_site().safety
    assert safety is not None
    assert (safety.folder, safety.threshold, safety.labels) == (folder, 0.85, ("NSFW",))
    digests = [safety.digest]
    file.write_text("version: 1\nsafety: {checker: checker, labels: [gore, NSFW]}\n")
    for weights in ("model.safetensors", "other weights"):
        (folder / "model.safetensors").write_text(weights)
        safety = load_site().safety
        assert safety is not None
        digests.append(safety.digest)
    assert len(set(digests)) == 3


@pytest.mark.parametrize(
    ("source", "licence"),
    [
        ("Wan-AI/Wan2.1-T2V-14B-Diffusers", "Apache-2.0"),
        ("buffalo_l", "non-commercial research only"),
        ("/models/antelopev2", "non-commercial research only"),
        ("/m/face_detection_yunet_2023mar.onnx", "MIT"),
        ("/m/other.safetensors", "see its source"),
    ],
)
def test_known_licences(source: str, licence: str) -> None:
    assert licence_of(source) == licence


def test_only_licences_for_commercial_use() -> None:
    spec, rules = load_pipeline("lynx-full", resolve=False), Site(Path("/etc/site.yaml"), commercial=True)
    assert licence_mistakes(spec, Recognizer("insightface"), Site()) == []
    lines = licence_mistakes(spec, Recognizer("insightface"), rules)
    assert lines == [
        "buffalo_l: its licence (non-commercial research only) forbids commercial use; /etc/site.yaml asks for "
        "licences: commercial",
        "arcface_ir_se50: its licence (see its source) is not known to allow commercial use: state it in license: or "
        "in the site file; /etc/site.yaml asks for licences: commercial",
        "insightface: its licence (non-commercial research only) forbids commercial use; /etc/site.yaml asks for "
        "licences: commercial",
    ]
    known = {"buffalo_l": "BSD-3-Clause", "arcface_ir_se50": "mit", "insightface": "CC-BY-NC-4.0"}
    lines = licence_mistakes(spec, Recognizer("insightface"), Site(rules.path, commercial=True, licence_of=known))
    assert lines == [
        "insightface: its licence (CC-BY-NC-4.0) forbids commercial use; /etc/site.yaml asks for licences: commercial"
    ]
    assert licence_mistakes(load_pipeline("demo-tiny"), Recognizer("dlib"), rules) == []
