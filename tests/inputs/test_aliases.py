"""Names of other programs get the right suggestion, wherever they are written."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from lynx_parallel.errors import InputErrors
from lynx_parallel.inputs.aliases import ALIASES, suggest
from lynx_parallel.inputs.entries import ManifestFile
from lynx_parallel.inputs.load import load_campaign
from lynx_parallel.inputs.overrides import SETTABLE
from lynx_parallel.inputs.pipeline import Adapters, FaceSpec, ModelSpec, Video
from lynx_parallel.inputs.sampling import Sampling, SamplingOverrides
from tests.helpers.campaigns import MANIFEST, write

FOREIGN = {
    "start_percent": "identity_window",
    "end_percent": "identity_window",
    "lynx_cfg_scale": "guidance_scale_i",
    "cfg": "guidance_scale",
    "cfg_scale": "guidance_scale",
    "steps": "num_inference_steps",
    "shift": "flow_shift",
    "sampler_name": "scheduler",
    "negative": "negative_prompt",
    "frames": "num_frames",
    "length": "num_frames",
    "ref_blocks_to_use": "ref_blocks",
}


def lines(folder: Path, manifest: str, *overrides: str) -> list[str]:
    write(folder, manifest)
    with pytest.raises(InputErrors) as caught:
        load_campaign(folder / "m.yaml", overrides)
    return caught.value.lines


@pytest.mark.parametrize("name", FOREIGN)
def test_in_every_place(tmp_path: Path, name: str) -> None:
    ours = FOREIGN[name]
    (option,) = lines(tmp_path, MANIFEST, f"{name}=1")
    assert f"--set {name}=1: unknown setting; did you mean 'sampling.{ours}'?" in option
    (option,) = lines(tmp_path, MANIFEST, f"sampling.{name}=1")
    assert f"unknown setting; did you mean 'sampling.{ours}'?" in option
    (top,) = lines(tmp_path, f"{MANIFEST}{name}: 1\n")
    assert f": {name}: unknown key; did you mean 'sampling.{ours}'?" in top
    (section,) = lines(tmp_path, f"{MANIFEST}sampling: {{{name}: 1}}\n")
    assert f": sampling.{name}: unknown key; did you mean '{ours}'?" in section
    (subject,) = lines(
        tmp_path, MANIFEST.replace("    vars: {person: man}", f"    {name}: 1\n    vars: {{person: man}}")
    )
    assert f": subjects.bob.{name}: unknown key; did you mean 'sampling.{ours}'?" in subject
    (tmp_path / "shots.csv").write_text(f"subject,prompt,{name}\nada,walk,1\n")
    (column, *_) = lines(tmp_path, MANIFEST + "shots: {from: shots.csv}\n")
    assert f"unknown column; did you mean 'sampling.{ours}'?" in column


@pytest.mark.parametrize(
    ("name", "known", "expected"),
    [
        ("crf", SETTABLE, "did you mean 'video.crf'? (allowed"),
        ("sampling.crf", SETTABLE, "did you mean 'video.crf'? (allowed"),
        ("video.steps", SETTABLE, "did you mean 'sampling.num_inference_steps'? (allowed"),
        ("widht", SETTABLE, "did you mean 'sampling.width'? (allowed"),
        ("num_frames", ManifestFile.model_fields, "did you mean 'sampling.num_frames'? (allowed"),
        ("dtype", ManifestFile.model_fields, "did you mean 'model.dtype' in the pipeline file? (allowed"),
        ("ip_layers", ModelSpec.model_fields, "did you mean 'model.adapters.id'"),
        ("Lynx-CFG-Scale", SamplingOverrides.model_fields, "did you mean 'guidance_scale_i'? (allowed"),
        ("widht", SamplingOverrides.model_fields, "did you mean 'width'? (allowed"),
        ("lora", ModelSpec.model_fields, "did you mean 'loras'? It is a list of files"),
        ("ouptut", ManifestFile.model_fields, "did you mean 'output'? (allowed"),
        ("qqqqq", ManifestFile.model_fields, "allowed: version, "),
        (
            "start_percent",
            Sampling.model_fields,
            "did you mean 'identity_window'? It takes both fractions: [start, end].",
        ),
    ],
)
def test_other_kinds_of_mistakes(name: str, known: Iterable[str], expected: str) -> None:
    assert suggest(name, known).startswith(expected)


def test_the_table_follows_the_settings() -> None:
    """Each key exists, and a name that becomes a setting of ours leaves the table."""
    sections = {"sampling": Sampling, "video": Video, "model": ModelSpec, "model.adapters": Adapters, "face": FaceSpec}
    for name, alias in ALIASES.items():
        section, _, key = alias.key.rpartition(".")
        assert name == name.casefold().replace("-", "_")
        assert not alias.key or key in (sections[section].model_fields if section else ManifestFile.model_fields), name  # type: ignore[attr-defined]
        assert alias.key or alias.note
        assert all(name not in model.model_fields for model in (*sections.values(), ManifestFile)), name  # type: ignore[attr-defined]
