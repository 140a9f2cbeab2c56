"""The JSON schemas: they agree with the models, describe every key, accept what we accept, refuse typical mistakes.

The fixture ``load`` checks every manifest that a test in this folder loads.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from lynx_parallel.inputs.entries import ManifestFile
from lynx_parallel.inputs.load import load_campaign
from lynx_parallel.inputs.pipeline_files import load_pipeline
from lynx_parallel.inputs.problems import Problems
from lynx_parallel.inputs.sampling import Sampling
from lynx_parallel.inputs.schema import FILES, MODELINE, modeline, schema, schema_text
from lynx_parallel.inputs.shipped import shipped_dir, shipped_names
from lynx_parallel.inputs.yaml_lines import read_yaml
from tests.helpers import campaigns
from tests.helpers.json_schemas import schema_mistakes
from tests.helpers.manifests import ADA, HEAD, LITE, PROMPTS, Complain
from tests.helpers.repository import REPOSITORY

RECORDED = REPOSITORY / "tests" / "recorded"


def properties(kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields every property of a schema with its model."""
    made = schema(kind)
    for model, found in [("top", made), *made["$defs"].items()]:
        for name, about in found["properties"].items():
            yield f"{model}.{name}", about


@pytest.mark.parametrize("kind", FILES)
def test_the_committed_file_is_the_schema(kind: str) -> None:
    assert (REPOSITORY / "schemas" / f"{kind}.json").read_text() == schema_text(kind), "run make schemas"
    Draft202012Validator.check_schema(schema(kind))
    assert "x-allowed" not in schema_text(kind)


@pytest.mark.parametrize("kind", FILES)
def test_every_key_is_described(kind: str) -> None:
    for name, about in properties(kind):
        assert re.fullmatch(r"[A-Z0-9].*\.", about.get("description", "")), name


@pytest.mark.parametrize("kind", FILES)
def test_every_number_has_a_range_and_says_it(kind: str) -> None:
    numbers = [(name, about) for name, about in properties(kind) if about.get("type") in ("integer", "number")]
    assert numbers
    for name, about in numbers:
        assert {"minimum", "exclusiveMinimum"} & about.keys(), name
        assert "Must be " in about["description"], name


def test_keys_and_defaults_are_those_of_the_models() -> None:
    manifest, pipeline = schema("manifest"), schema("pipeline")
    assert manifest["properties"].keys() == ManifestFile.model_fields.keys()
    sampling = pipeline["$defs"]["Sampling"]["properties"]
    defaults = {
        name: list(v) if isinstance(v := field.default, tuple) else v for name, field in Sampling.model_fields.items()
    }
    assert {name: about.get("default") for name, about in sampling.items()} == defaults
    overrides = manifest["$defs"]["SamplingOverrides"]["properties"]
    assert not any("default" in about for about in overrides.values()), "a setting that is left out keeps its value"
    texts = {name: about["description"] for name, about in sampling.items()}
    assert {name: about["description"] for name, about in overrides.items()} == texts


def test_shipped_files_name_their_schema_and_fit_it() -> None:
    for kind, folder in (("manifest", "manifests"), ("pipeline", "pipelines")):
        for name in shipped_names(folder):  # type: ignore[arg-type]
            file = shipped_dir(folder) / f"{name}.yaml"  # type: ignore[arg-type]
            assert schema_mistakes(kind, file) == []
            first, _, _ = file.read_text().partition("\n")
            assert first.startswith(MODELINE)
            named = (file.parent / first.removeprefix(MODELINE)).resolve()
            assert named == REPOSITORY / "schemas" / f"{kind}.json"


def test_the_line_for_other_files_names_the_installed_schema(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    uri = modeline("manifest").removeprefix(MODELINE)
    assert uri.startswith("file:///")
    assert Path(uri.removeprefix("file://")).is_file()
    monkeypatch.setattr("lynx_parallel.inputs.schema.shipped_dir", lambda kind: tmp_path / "a b" / kind)
    assert " " not in modeline("manifest").removeprefix(MODELINE), "editors end the address at a space"


def test_manifests_and_pipelines_of_the_tests(tmp_path: Path) -> None:
    campaigns.write(tmp_path)
    manifests = [tmp_path / "m.yaml", RECORDED / "full-campaign.yaml", RECORDED / "lite-campaign.yaml"]
    pipelines = [tmp_path / "full.yaml", tmp_path / "lite.yaml", RECORDED / "full.yaml", RECORDED / "lite.yaml"]
    for kind, files in (("manifest", manifests), ("pipeline", pipelines)):
        for file in files:
            assert schema_mistakes(kind, file) == [], file


@pytest.mark.parametrize(
    "text",
    [
        HEAD + "subjects: {from: faces/*.jpg, face: 2, vars: {person: woman}}\n" + PROMPTS,
        HEAD + "subjects: {from: {embedding: faces/ada.npy, vars: {person: woman}}}\n" + PROMPTS,
        HEAD + ADA + "prompts: {a: {text: x, sampling: {num_frames: 5}}, b: {file: b.txt}, c: x}\n",
        HEAD + ADA + PROMPTS + "variants: {a: {}, b: null, c: {sampling: {ip_scale: 0}}, d: {pipeline: lite.yaml}}\n",
        HEAD + ADA + PROMPTS + "variants: {a: {sampling.ip_scale: [0.5, 1], pipeline: lite.yaml}}\n",
        HEAD + ADA + PROMPTS + "variants: {a: {sampling.identity_window: [[0, 1], [0.1, 0.8]]}}\n",
        HEAD + ADA + PROMPTS + "shots: [{subject: ada, prompt: [walk, run], takes: {1: 42, 3: 7}, priority: -1}]\n",
        HEAD + ADA + PROMPTS + "shots: {from: shots.csv}\n",
        HEAD + ADA + PROMPTS + "sampling: {guidance_scale_i: null, ref_blocks: 3, fps: 24, sigmas: [1, 0.5]}\n",
    ],
)
def test_valid_forms(folder: Path, text: str) -> None:
    (folder / "m.yaml").write_text(text)
    assert schema_mistakes("manifest", folder / "m.yaml") == []


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (ADA + PROMPTS + "ouptut: x\n", ""),
        (ADA + PROMPTS + "sampling: {widht: 64}\n", "sampling"),
        (ADA + PROMPTS + "sampling: {width: 100}\n", "sampling.width"),
        (ADA + PROMPTS + "sampling: {width: 8192}\n", "sampling.width"),
        (ADA + PROMPTS + "sampling: {width: null}\n", "sampling.width"),
        (ADA + PROMPTS + "sampling: {seed: -1}\n", "sampling.seed"),
        (ADA + PROMPTS + "sampling: {ip_scale: strong}\n", "sampling.ip_scale"),
        (ADA + PROMPTS + "sampling: {scheduler: ddim}\n", "sampling.scheduler"),
        (ADA + PROMPTS + "video: {crf: 52}\n", "video.crf"),
        (ADA + PROMPTS + "name: ' '\n", "name"),
        (ADA + PROMPTS + "faces: public\n", "faces"),
        (ADA + PROMPTS + "save_latents: 1\n", "save_latents"),
        (ADA + PROMPTS + "vars: {person: 1}\n", "vars.person"),
        ("subjects: {}\n" + PROMPTS, "subjects"),
        ("subjects: [ada]\n" + PROMPTS, "subjects"),
        ("subjects: {a b: {image: x}}\n" + PROMPTS, "subjects"),
        ("subjects: {ada: {imgae: x}}\n" + PROMPTS, "subjects.ada"),
        ("subjects: {ada: {face: 0}}\n" + PROMPTS, "subjects.ada.face"),
        ("subjects: {ada: {landmarks: [[1, 2]]}}\n" + PROMPTS, "subjects.ada.landmarks"),
        ("subjects: {ada: {consent: {scope: x}}}\n" + PROMPTS, "subjects.ada.consent"),
        ("subjects: {from: x, image: y}\n" + PROMPTS, "subjects"),
        (ADA + "prompts: {p: 1}\n", "prompts.p"),
        (ADA + "prompts: {p: {txt: x}}\n", "prompts.p"),
        (ADA + PROMPTS + "variants: {a: {pipline: x}}\n", "variants.a"),
        (ADA + PROMPTS + "variants: {a: {sampling.ip_scale: 1}}\n", "variants.a.sampling.ip_scale"),
        (ADA + PROMPTS + "variants: {a: {sampling.ip_scale: [-1]}}\n", "variants.a.sampling.ip_scale.0"),
        (ADA + PROMPTS + "variants: {a: {sampling.ip: [1]}}\n", "variants.a"),
        (ADA + PROMPTS + "shots: []\n", "shots"),
        (ADA + PROMPTS + "shots: [{subject: ada}]\n", "shots.0"),
        (ADA + PROMPTS + "shots: [{subject: ada, prompt: run, takes: 0}]\n", "shots.0.takes"),
        (ADA + PROMPTS + "shots: {from: x, to: y}\n", "shots"),
    ],
)
def test_typical_mistakes(complain: Complain, folder: Path, text: str, place: str) -> None:
    """Both refuse them: we, and the schema at this place."""
    assert complain(HEAD + text)
    found = schema_mistakes("manifest", folder / "m.yaml")
    assert place in {line.partition(": ")[0] for line in found}, found


@pytest.mark.parametrize(
    "changes",
    [
        ("version: 1", "version: 2"),
        ("base: demo:tiny", "base: 1"),
        ("dtype", "dytpe"),
        ("demo:lite}", "{fiel: x}}"),
        ("width: 64", "width: 65"),
        ("guidance_scale_i: null", "guidance_scale_i: -1"),
        ("crf: 18", "codec: av1"),
        ("video:", "vido:"),
    ],
)
def test_typical_mistakes_in_a_pipeline(tmp_path: Path, changes: tuple[str, str]) -> None:
    assert changes[0] in campaigns.LITE
    file = tmp_path / "p.yaml"
    file.write_text(campaigns.LITE.replace(*changes))
    assert read_yaml(file, Problems())
    assert schema_mistakes("pipeline", file)
    with pytest.raises(Exception, match=r"p\.yaml:\d"):
        load_pipeline(file)


def test_a_file_of_takes(folder: Path) -> None:
    file = folder / "t.yaml"
    file.write_text("version: 1\ntakes:\n- {subject: ada, prompt: walk, take: 2, seed: 7, history: [{seed: 1}]}\n")
    assert schema_mistakes("takes", file) == []
    (folder / "m.yaml").write_text(HEAD + ADA + PROMPTS + "takes: t.yaml\n")
    assert load_campaign("m.yaml").shots
    file.write_text("version: 1\ntakes:\n- {subject: ada, prompt: walk, take: 0, seed: 7, stat: x}\n")
    assert len(schema_mistakes("takes", file)) == 2


def test_a_pipeline_needs_no_more_than_its_model(tmp_path: Path) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(LITE)
    assert schema_mistakes("pipeline", file) == []
