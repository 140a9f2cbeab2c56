"""Pipeline files: fields, weights, shipped data."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from lynx_parallel.errors import InputErrors
from lynx_parallel.inputs.guidance import sampling_coefficients
from lynx_parallel.inputs.pipeline import PipelineSpec, Video
from lynx_parallel.inputs.pipeline_files import load_pipeline
from lynx_parallel.inputs.sampling import Sampling, SamplingOverrides, overlay, sampling_mistake
from lynx_parallel.inputs.shipped import shipped_dir, shipped_names
from lynx_parallel.plan.digests import digested

MODEL = "version: 1\nmodel:\n  base: {base}\n  adapters: {{resampler: {file}, id: demo:full}}\n"


def load(folder: Path, text: str) -> PipelineSpec:
    (folder / "p.yaml").write_text(text)
    return load_pipeline("p.yaml")


def complain(folder: Path, text: str) -> list[str]:
    with pytest.raises(InputErrors) as caught:
        load(folder, text)
    return caught.value.lines


@pytest.mark.parametrize("name", shipped_names("pipelines"))
def test_every_shipped_pipeline_loads(name: str) -> None:
    spec = load_pipeline(name)
    assert spec == load_pipeline(shipped_dir("pipelines") / f"{name}.yaml")


def test_shipped_pipelines_are_the_models_they_name() -> None:
    assert shipped_names("pipelines") == [
        "demo-tiny", "lynx-full", "lynx-full-fewstep", "lynx-full-upstream", "lynx-lite", "lynx-lite-id-full-ref",
        "lynx-lite-id-full-ref-fewstep",
    ]  # fmt: skip
    full, lite = load_pipeline("lynx-full"), load_pipeline("lynx-lite")
    assert full.model.adapters.ref is not None
    assert (full.sampling.num_frames, full.sampling.fps, full.sampling.guidance_scale_i) == (81, 16, 2.0)
    assert lite.model.adapters.ref is None
    assert (lite.sampling.num_frames, lite.sampling.fps, lite.sampling.guidance_scale_i) == (121, 24, None)
    assert full.model.adapters.id.file == "hub:ByteDance/lynx/lynx_full/ip_layers.safetensors"


def test_few_step_pipelines_run_one_branch() -> None:
    full, mixed = load_pipeline("lynx-full-fewstep"), load_pipeline("lynx-lite-id-full-ref-fewstep")
    for spec, steps in ((full, 4), (mixed, 6)):
        assert spec.sampling.num_inference_steps == steps
        assert sampling_coefficients(spec.sampling, has_reference=True) == {"c": 1.0}
        assert (spec.sampling.ip_scale, spec.sampling.ref_scale) == (0.7, 0.6)
        assert (spec.sampling.identity_window, spec.sampling.ref_blocks) == ((0, 1), "all")
        assert [lora.weight for lora in spec.model.loras] == [1.0]
        assert sampling_mistake(spec.sampling) is None
    assert mixed.sampling.timesteps == (1000, 970, 924, 845, 675, 60)


def test_the_upstream_pipeline_differs_from_full_in_two_settings() -> None:
    full, upstream = load_pipeline("lynx-full"), load_pipeline("lynx-full-upstream")
    assert full.model == upstream.model
    changed = {
        name for name in Sampling.model_fields if getattr(full.sampling, name) != getattr(upstream.sampling, name)
    }
    assert changed == {"negative_prompt", "reference_latent"}
    assert upstream.sampling.negative_prompt.startswith("Bright tones, overexposed, blurred background, static, ")


def test_defaults() -> None:
    assert Sampling().model_dump() == {
        "width": 832,
        "height": 480,
        "num_frames": 81,
        "fps": 16.0,
        "num_inference_steps": 50,
        "scheduler": "unipc",
        "flow_shift": 3.0,
        "sigma_schedule": "lynx",
        "sigmas": None,
        "timesteps": None,
        "guidance_scale": 5.0,
        "guidance_scale_2": None,
        "boundary_ratio": None,
        "guidance_scale_i": 2.0,
        "ip_scale": 1.0,
        "ref_scale": 1.0,
        "negative_prompt": "",
        "reference_latent": "mode",
        "reference_size": 256,
        "identity_window": (0.0, 1.0),
        "ref_blocks": "all",
        "seed": 42,
    }


WHOLE = [True, 1.0, "1", None, float("nan")]
GOOD_AND_BAD = [
    ("width", [16, 4096], [0, 15, 24, 4112, -16, 10**30, *WHOLE]),
    ("height", [16, 4096], [0, 15, 24, 4112, *WHOLE]),
    ("num_frames", [1, 5, 81, 121, 100001], [0, 2, 80, -3, 100005, *WHOLE]),
    (
        "fps",
        [1, 0.5, 1 / 2000, 240, 23.976],
        [0, 1 / 2001, 1e-300, -1, 241, float("inf"), float("nan"), True, "24", None, 10**400],
    ),
    ("num_inference_steps", [1, 1000], [0, 1001, *WHOLE]),
    ("flow_shift", [0.1, 3, 1e9], [0, -1, float("inf"), float("nan"), False, "3"]),
    ("sigma_schedule", ["lynx", "diffusers"], ["Lynx", 1, None, True]),
    ("guidance_scale", [0, 5, 7.5], [-0.1, float("inf"), True, "5", None]),
    ("guidance_scale_i", [0, 2.5, None], [-1, float("nan"), True, "null"]),
    ("reference_size", [128, 256, 1024], [0, 64, 200, 1152, *WHOLE]),
    (
        "identity_window",
        [[0, 1], [0.2, 0.8], [0.5, 0.5]],
        [[1], [0, 1, 1], [0.8, 0.2], [-0.1, 1], [0, 1.1], 0.5, None, "0-1"],
    ),
    ("ref_blocks", ["all", "0", "0-20,25", "3, 5-7"], ["", "a", "5-3", "-1", "1,,2", "1-", 3.5, True, None, ["1"]]),
    ("ip_scale", [0, 1.5], [-1, float("inf"), True, None]),
    ("ref_scale", [0, 1.5], [-1, float("inf"), True, None]),
    ("negative_prompt", ["", "bad"], [1, None, True]),
    ("reference_latent", ["mode", "sample"], ["mean", None]),
    ("seed", [0, 2**63 - 1], [-1, 2**63, *WHOLE]),
]


@pytest.mark.parametrize(("name", "good", "bad"), GOOD_AND_BAD, ids=[row[0] for row in GOOD_AND_BAD])
def test_sampling_fields(name: str, good: list[object], bad: list[object]) -> None:
    for value in good:
        read = tuple(value) if isinstance(value, list) else value
        assert getattr(Sampling.model_validate({name: value}), name) == read
        assert SamplingOverrides.model_validate({name: value}).given() == {name: read}
    for value in bad:
        for model in (Sampling, SamplingOverrides):
            with pytest.raises(ValidationError):
                model.model_validate({name: value})


def test_lossless_is_no_setting_by_default() -> None:
    """What was finished before there was ``lossless`` stays done."""
    assert digested(Video()) == {"container": "mp4", "codec": "h264", "crf": 18}
    assert digested(Video(lossless=True))["lossless"] is True
    assert Video(crf=0).crf == 0  # finished videos have it
    for value in (1, "true", None):
        with pytest.raises(ValidationError, match="must be true or false"):
            Video.model_validate({"lossless": value})


def test_one_block_may_be_a_number() -> None:
    """``ref_blocks: 3`` is a number in YAML and in ``--set``."""
    assert repr(Sampling.model_validate({"ref_blocks": 3})) == repr(Sampling(ref_blocks="3"))
    assert SamplingOverrides.model_validate({"ref_blocks": 0}).given() == {"ref_blocks": "0"}
    for value in (-3, True):
        with pytest.raises(ValidationError, match="list of transformer blocks"):
            Sampling.model_validate({"ref_blocks": value})


def test_whole_numbers_become_floats() -> None:
    sampling = Sampling.model_validate({"fps": 24, "guidance_scale": 5})
    assert type(sampling.fps) is float
    assert repr(sampling) == repr(Sampling.model_validate({"fps": 24.0, "guidance_scale": 5.0}))


def test_overrides_have_the_fields_of_sampling() -> None:
    assert list(SamplingOverrides.model_fields) == list(Sampling.model_fields)


def test_overlay_tells_null_from_not_given() -> None:
    null = SamplingOverrides.model_validate({"guidance_scale_i": None})
    width = SamplingOverrides(width=64)
    assert overlay(Sampling(), width).guidance_scale_i == 2.0
    assert overlay(Sampling(), null, width).guidance_scale_i is None
    assert overlay(Sampling(), null, SamplingOverrides(guidance_scale_i=3.0)).guidance_scale_i == 3.0
    assert hash(Sampling()) == hash(overlay(Sampling()))


@pytest.mark.parametrize("base", ["Wan-AI/Wan2.1-T2V-14B-Diffusers", "a/b@main", "a/b@refs/pr/1", "demo:tiny"])
def test_base_taken_as_it_stands(folder: Path, base: str) -> None:
    assert load(folder, MODEL.format(base=base, file="demo:full")).model.base == base


def test_base_folders(folder: Path) -> None:
    (folder / "org" / "wan").mkdir(parents=True)
    for base in ("org/wan", "./org/wan", str(folder / "org/wan"), "org"):
        spec = load(folder, MODEL.format(base=base, file="demo:full"))
        assert spec.model.base == str(folder / ("org" if base == "org" else "org/wan"))


def test_paths_are_relative_to_the_pipeline_file(folder: Path) -> None:
    (folder / "sub" / "w").mkdir(parents=True)
    (folder / "sub" / "w" / "r.safetensors").write_bytes(b"x")
    (folder / "sub" / "p.yaml").write_text(MODEL.format(base="./w", file="w/r.safetensors"))
    spec = load_pipeline("sub/p.yaml")
    assert spec.model.base == str(folder / "sub" / "w")
    assert spec.model.adapters.resampler.file == str(folder / "sub" / "w" / "r.safetensors")


def test_a_link_keeps_its_suffix_and_home_is_known(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    (folder / "blob").write_bytes(b"x")
    (folder / "r.safetensors").symlink_to("blob")
    spec = load(folder, MODEL.format(base="demo:tiny", file="~/r.safetensors"))
    assert spec.model.adapters.resampler.file == str(folder / "r.safetensors")


def test_adapter_with_license(folder: Path) -> None:
    file = "{file: 'hub:a/b@v1/c/d.safetensors', license: Apache-2.0}"
    adapter = load(folder, MODEL.format(base="demo:tiny", file=file)).model.adapters.resampler
    assert (adapter.file, adapter.license, str(adapter)) == (
        "hub:a/b@v1/c/d.safetensors",
        "Apache-2.0",
        "hub:a/b@v1/c/d.safetensors",
    )


BASE = "must be a hub id (org/name or org/name@revision), a folder or demo:tiny"
FILE = "must be a .safetensors file, hub:org/repo/path/in/repo or demo:name"


@pytest.mark.parametrize(
    ("base", "said"),
    [
        ("./nothing", "'./nothing': missing folder {folder}/nothing"),
        ("../lite.yaml/x", None),
        ("./lite.yaml", "'./lite.yaml': not a folder"),
        ("wan", f"'wan': {BASE}"),
        ("a/b/c", f"'a/b/c': {BASE}"),
        ('"demo:"', "'demo:': " + BASE),
        ("demo:Tiny", f"'demo:Tiny': {BASE}"),
        ('"demo:tiny\\n"', f"'demo:tiny\\n': {BASE}"),
        ('"a/b\\n"', f"'a/b\\n': {BASE}"),
        ("x" * 300, f"'{'x' * 78}…': {BASE}"),
    ],
)
def test_wrong_base(folder: Path, base: str, said: str | None) -> None:
    lines = complain(folder, MODEL.format(base=base, file="demo:full"))
    assert len(lines) == 1
    if said:
        assert lines == [f"p.yaml:3: model.base: {said.replace('{folder}', str(folder))}"]


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("x.safetensors", "'x.safetensors': missing file {folder}/x.safetensors"),
        ("./x", "'./x': missing file {folder}/x"),
        ("faces", "'faces': not a regular file"),
        ("something", f"'something': {FILE}"),
        ("hub:a/b", f"'hub:a/b': {FILE}"),
        ("hub:a/b/../c", f"'hub:a/b/../c': {FILE}"),
        ("hub:a/b//c", f"'hub:a/b//c': {FILE}"),
        ("demo:a_b", f"'demo:a_b': {FILE}"),
    ],
)
def test_wrong_adapter(folder: Path, file: str, said: str) -> None:
    lines = complain(folder, MODEL.format(base="demo:tiny", file=file))
    assert lines == [f"p.yaml:4: model.adapters.resampler: {said.replace('{folder}', str(folder))}"]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("version: 1\n", ["p.yaml:1: model: missing: a mapping with base, adapters and dtype"]),
        (
            "version: 1\nmodel: {base: demo:tiny, adapters: {id: demo:full, loras: []}, face: 1}\n",
            [
                "p.yaml:2: model.adapters.loras: unknown key; did you mean 'model.loras' in the pipeline file?"
                " (allowed: resampler, id, ref)",
                "p.yaml:2: model.face: unknown key; allowed: base, adapters, transformer, transformer_2,"
                " adapters_expert, loras, loras_on_reference, dtype, vae_dtype",
            ],
        ),
        (
            "version: 1\nmodel: {base: demo:tiny, adapters: {id: demo:full}}\n",
            ["p.yaml:2: model.adapters: a mapping: give both resampler and id, or neither"],
        ),
        (
            "version: 1\nmodel: {base: demo:tiny, adapters: {}}\n",
            ["p.yaml:2: model.adapters: a mapping: give resampler and id, ref, or all three"],
        ),
        (
            "version: one\nmodel: []\nvideo: {crf: 52, codec: av1, container: mkv}\nsampling: no\n",
            [
                "p.yaml:1: version: 'one': must be 1",
                "p.yaml:2: model: a list: must be a mapping (key: value)",
                "p.yaml:3: video.container: 'mkv': must be 'mp4'",
                "p.yaml:3: video.codec: 'av1': must be 'h264' or 'h265'",
                "p.yaml:3: video.crf: 52: must be a whole number from 0 to 51",
                "p.yaml:4: sampling: no: must be a mapping (key: value)",
            ],
        ),
    ],
)
def test_wrong_files(folder: Path, text: str, lines: list[str]) -> None:
    assert complain(folder, text) == lines


def test_wrong_names(folder: Path) -> None:
    with pytest.raises(InputErrors) as caught:
        load_pipeline("lynx-ful")
    assert caught.value.lines == [
        "pipeline 'lynx-ful': no shipped pipeline of that name; did you mean 'lynx-full'?"
        " (shipped: demo-tiny, lynx-full, lynx-full-fewstep, lynx-full-upstream, lynx-lite, lynx-lite-id-full-ref,"
        " lynx-lite-id-full-ref-fewstep)"
    ]
    with pytest.raises(InputErrors) as caught:
        load_pipeline(Path("none.yaml"))
    assert caught.value.lines == ["none.yaml: no such pipeline file"]


def test_the_precision_of_the_vae(folder: Path) -> None:
    text = MODEL.format(base="demo:tiny", file="demo:full")
    assert load(folder, text).model.vae_dtype == "float32"
    for good in ("float32", "tf32", "bfloat16"):
        assert load(folder, f"{text}  vae_dtype: {good}\n").model.vae_dtype == good
    assert complain(folder, f"{text}  vae_dtype: float16\n") == [
        "p.yaml:5: model.vae_dtype: 'float16': must be 'float32', 'tf32' or 'bfloat16'"
    ]
