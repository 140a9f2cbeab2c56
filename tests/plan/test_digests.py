"""What makes a finished video the one asked for, and what does not."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import lynx_parallel
import lynx_parallel.plan.digests
from lynx_parallel.errors import InputErrors
from lynx_parallel.inputs.cleaning import clean_prompt
from lynx_parallel.inputs.sampling import Sampling
from lynx_parallel.plan.digests import CampaignDigests, ShotDigests, changed, crops_source, shot_digests, subject_key
from tests.helpers.campaigns import FULL, MANIFEST, WEIGHTS, load, write

LANDMARKS = "landmarks: [[1, 2]"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The small campaign. Its embeddings hold the bytes that the recorded digests are of."""
    write_recorded(tmp_path)
    return tmp_path


def write_recorded(folder: Path) -> None:
    write(folder)
    for name in ("ada", "bob"):
        (folder / f"{name}.npy").write_bytes(f"embedding of {name}".encode())


def of(folder: Path, manifest: str = MANIFEST, *overrides: str, index: int = 0) -> ShotDigests:
    campaign = load(folder, manifest, *overrides)
    return shot_digests(campaign, campaign.shots[index], WEIGHTS)


@pytest.mark.parametrize(
    ("override", "name"),
    [
        ("width=80", "sampling.width"),
        ("height=64", "sampling.height"),
        ("num_frames=13", "sampling.num_frames"),
        ("num_inference_steps=49", "sampling.num_inference_steps"),
        ("flow_shift=3.1", "sampling.flow_shift"),
        ("sigma_schedule=diffusers", "sampling.sigma_schedule"),
        ("guidance_scale=5.000001", "sampling.guidance_scale"),
        ("guidance_scale_i=2", "sampling.guidance_scale_i"),
        ("ip_scale=0.9", "sampling.ip_scale"),
        ("ref_scale=0.9", "sampling.ref_scale"),
        ("negative_prompt=grey", "sampling.negative_prompt"),
        ("reference_latent=sample", "sampling.reference_latent"),
        ("seed=43", "sampling.seed"),
    ],
)
def test_a_setting_that_changes_latents(folder: Path, override: str, name: str) -> None:
    before, after = of(folder), of(folder, MANIFEST, f"sampling.{override}")
    assert before.latents != after.latents
    assert before.video != after.video
    assert changed(before.settings, after.settings) == [name]


def test_every_sampling_field_counts(folder: Path) -> None:
    """A field of a later version counts where it is not at its default."""
    identity = of(folder)
    counted = {name for name in {**identity.settings, **identity.encoding} if name.startswith("sampling.")}
    later = {
        "sampling.scheduler": "scheduler: lcm",
        "sampling.sigmas": "sigmas: [1]",
        "sampling.timesteps": "timesteps: [9]",
        "sampling.guidance_scale_2": "guidance_scale_2: 3",
        "sampling.boundary_ratio": "boundary_ratio: 0.5",
    }
    assert {f"sampling.{name}" for name in Sampling.model_fields} == counted | later.keys()
    for name, setting in later.items():
        steps = "" if name == "sampling.scheduler" else ", num_inference_steps: 1"
        changes = changed(identity.settings, of(folder, f"{MANIFEST}sampling: {{{setting}{steps}}}\n").settings)
        assert name in changes


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [
        ("A {person} walks.", "A {person} walks", "prompt"),
        ("person: woman", "person: girl", "prompt"),
        (LANDMARKS, "landmarks: [[1.5, 2]", "subject.landmarks"),
    ],
)
def test_words_and_points_that_change_latents(folder: Path, old: str, new: str, name: str) -> None:
    assert MANIFEST.count(old) >= 1
    before, after = of(folder), of(folder, MANIFEST.replace(old, new, 1))
    assert before.latents != after.latents
    assert changed(before.settings, after.settings) == [name]


@pytest.mark.parametrize(("file", "name"), [("ada.jpg", "subject.image"), ("ada.npy", "subject.embedding")])
def test_pictures_and_embeddings_count_by_content(folder: Path, file: str, name: str) -> None:
    path = folder / file
    before, content, status = of(folder), path.read_bytes(), path.stat()

    path.write_bytes(content[::-1])
    after = of(folder)
    assert changed(before.settings, after.settings) == [name]
    assert before.latents != after.latents

    # The same content, touched, or elsewhere under another name: the same shot.
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))
    assert of(folder) == before
    path.rename(folder / f"other{path.suffix}")
    assert of(folder, MANIFEST.replace(file, f"other{path.suffix}")) == before


def test_the_model_counts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    campaign = load(folder)
    before = shot_digests(campaign, campaign.shots[0], WEIGHTS)
    for name in WEIGHTS:
        after = shot_digests(campaign, campaign.shots[0], {**WEIGHTS, name: "f" * 64})
        assert after.latents != before.latents
        assert changed(before.settings, after.settings) == ["weights"]
    more = shot_digests(campaign, campaign.shots[0], {**WEIGHTS, "ref": "f" * 64, "base/vae/x": "e" * 64})
    assert changed(before.settings, more.settings) == ["weights"]

    (folder / "full.yaml").write_text(FULL.replace("float32", "bfloat16"))
    assert changed(before.settings, of(folder).settings) == ["dtype"]
    for vae_dtype, names in {"float32": [], "tf32": ["vae_dtype"], "bfloat16": ["vae_dtype"]}.items():
        (folder / "full.yaml").write_text(with_vae(FULL, vae_dtype))
        after = of(folder)
        assert changed(before.settings, after.settings) == names
        assert (after.latents != before.latents) == (after.video != before.video) == bool(names)
    (folder / "full.yaml").write_text(FULL)
    monkeypatch.setattr(lynx_parallel.plan.digests, "NUMERICS", 2)
    assert changed(before.settings, of(folder).settings) == ["numerics"]


@pytest.mark.parametrize(
    ("override", "name"),
    [
        ("sampling.fps=24", "sampling.fps"),
        ("video.crf=17", "video.crf"),
        ("video.codec=h265", "video.codec"),
    ],
)
def test_what_changes_the_file_alone(folder: Path, override: str, name: str) -> None:
    before, after = of(folder), of(folder, MANIFEST, override)
    assert before.latents == after.latents
    assert before.video != after.video
    assert changed(before.settings, after.settings) == []
    assert changed(before.encoding, after.encoding) == [name]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("  ada:\n", "  eva:\n"),
        ("walk: 'A", "stroll: 'A"),
        ("labels: {team: red}", "labels: {team: blue, wave: 2}"),
        ("consent: {ref: form-1, expires: 2027-01-31}", "consent: {ref: form-2, scope: web}"),
        ("output: out", "output: elsewhere"),
        ("output: out", "output: out\nsave_latents: false"),
        ("output: out", "output: out\nfaces: private"),
        ("output: out", 'output: out\nname: "{prompt}/{subject}-{seed}"'),
        ("output: out", "output: out\nsampling: {guidance_scale: 5, ip_scale: 1}"),  # the defaults, as whole numbers
        ("prompts:", "shots: [{subject: '*', prompt: '*', priority: 7, takes: 2}]\nprompts:"),
        ("prompts:", "shots: [{subject: '*', prompt: '*', seeds: [42]}]\nprompts:"),
        ("{person} walks.'", "{what} walks.'"),
        (LANDMARKS, "landmarks: [[1.0, 2.0]"),
    ],
)
def test_what_changes_nothing(folder: Path, old: str, new: str) -> None:
    manifest = MANIFEST.replace("vars: {person: woman}", "vars: {person: woman, what: woman}")
    if "what" in new:
        manifest = manifest.replace("vars: {person: man}", "vars: {person: man, what: man}")
    assert manifest.count(old) >= 1
    assert of(folder, manifest.replace(old, new, 1)) == of(folder)


def test_neither_version_nor_place_nor_licence_changes_anything(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = of(folder)
    monkeypatch.setattr(lynx_parallel, "__version__", "99.0")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    write_recorded(elsewhere)
    assert of(elsewhere) == before
    licensed = FULL.replace("ref: demo:full", "ref: {file: demo:full, license: CC-BY-NC-4.0}")
    assert licensed != FULL
    (folder / "full.yaml").write_text(licensed)
    assert of(folder) == before


def test_lite_does_not_look_at_pixels(folder: Path) -> None:
    lite = MANIFEST.replace("full.yaml", "lite.yaml")
    before = of(folder, lite)
    (folder / "ada.jpg").write_bytes(b"another picture")
    assert of(folder, lite.replace(LANDMARKS, "landmarks: [[9, 9]")) == before
    assert of(folder, lite.replace("    image: ada.jpg\n", "", 1)) == before
    (folder / "ada.npy").write_bytes(b"another embedding")
    assert of(folder, lite).latents != before.latents


def test_shots_of_a_campaign_differ(folder: Path) -> None:
    campaign = load(folder, MANIFEST + "shots: [{subject: '*', prompt: '*', takes: 3}]\n")
    identities = [shot_digests(campaign, shot, WEIGHTS) for shot in campaign.shots]
    assert len(identities) == 12
    assert len({identity.latents for identity in identities}) == 12


def test_a_digest_of_this_very_shot_never_changes(folder: Path) -> None:
    """A new number here renders every user's campaigns again: raise NUMERICS only when that is meant."""
    identity = of(folder)
    assert identity.latents == "018745b6d6484a4ea8d0507f46d742136f67175ac3554b7e9eb82e8f2388d579"
    assert identity.video == "a478dca5a9fa56d0b8909cc63826eb01cb8242183b633df810eb23a44446a86e"


def with_vae(pipeline: str, vae_dtype: str) -> str:
    assert "  dtype: float32\n" in pipeline
    return pipeline.replace("  dtype: float32\n", f"  dtype: float32\n  vae_dtype: {vae_dtype}\n")


LITE_MANIFEST = MANIFEST.replace("full.yaml", "lite.yaml")
KEY = "8ba07d9f3e11f837e90a16c39d663528cbee509307af8bf691c98a14e368b4be"
LITE_KEY = "5226c63ba1d08534b6dc798ecfd7bfe8cdbd9204db8780222d128a7de1ff42db"


def key_of(folder: Path, manifest: str, *device: str) -> str:
    campaign = load(folder, manifest)
    return subject_key(campaign, campaign.shots[0], WEIGHTS, *device)


def test_the_key_of_a_cached_subject_never_changes(folder: Path) -> None:
    """As of the first release: another number finds nothing in the caches that users have."""
    assert key_of(folder, MANIFEST) == key_of(folder, MANIFEST, "cpu") == KEY
    assert key_of(folder, LITE_MANIFEST) == LITE_KEY


def test_a_cached_subject_depends_on_the_device_that_made_it(folder: Path) -> None:
    """The VAE's latents and ArcFace's embedding differ between CPU and GPU; given data does not."""
    assert key_of(folder, MANIFEST, "cuda") != KEY
    assert key_of(folder, LITE_MANIFEST, "cuda") == LITE_KEY
    lite = folder / "lite.yaml"
    lite.write_text(lite.read_text() + "face: {detector: demo:faces, recognizer: demo:faces}\n")
    found = LITE_MANIFEST.replace("    embedding: ada.npy\n", "")
    assert key_of(folder, found, "cuda") != key_of(folder, found, "cpu")


def test_a_cached_subject_depends_on_the_precision_of_the_vae(folder: Path) -> None:
    for name in ("full", "lite"):
        pipeline = folder / f"{name}.yaml"
        pipeline.write_text(with_vae(pipeline.read_text(), "tf32"))
    assert key_of(folder, MANIFEST) != KEY
    assert key_of(folder, LITE_MANIFEST) == LITE_KEY  # it encodes no reference


def test_the_source_of_crops(folder: Path) -> None:
    """All that changes a crop but its size, which its name says."""
    pipeline, face = folder / "full.yaml", "face: {detector: demo:faces, recognizer: demo:faces, det_size: %d}\n"
    without = FULL + face % 640
    pipeline.write_text(without)
    found = MANIFEST.replace(f"    {LANDMARKS}, [3, 4], [5, 6], [7, 8], [9, 10]]\n", "", 1)

    def source(manifest: str = found, *overrides: str, weights: dict[str, str] = WEIGHTS) -> str:
        campaign = load(folder, manifest, *overrides)
        return crops_source(campaign, campaign.subjects[0], weights)

    before = source()
    assert source(found, "sampling.reference_size=384", "sampling.seed=7") == before
    assert source(found.replace("    image: ada.jpg\n", "    image: ada.jpg\n    face: 2\n")) != before
    assert source(MANIFEST) != before
    assert source(found.replace("    embedding: ada.npy\n", "")) != before
    assert source(weights=WEIGHTS | {"face.detector": "d" * 64}) != before
    pipeline.write_text(FULL + face % 320)
    assert source() != before
    pipeline.write_text(without)
    assert source() == before
    (folder / "ada.jpg").write_bytes(b"another picture")
    assert source() != before


def test_identities_made_together_are_those_made_one_by_one(folder: Path) -> None:
    """What shots share changes no digest: each is that of its settings written out, in the same order as ever."""
    layers = """\
sampling: {fps: 12, ip_scale: 0.9}
shots:
  - {subject: '*', prompt: '*', takes: 2}
  - {subject: ada, prompt: '*', seeds: [7], sampling: {identity_window: [0, 0.5], guidance_scale: 0.0}}
  - {subject: ada, prompt: '*', seeds: [8], sampling: {identity_window: [0, 0.5], guidance_scale: -0.0}}
  - {subject: bob, prompt: run, seeds: [9], sampling: {negative_prompt: "grün \\U0001F600"}}
"""
    campaign = load(folder, MANIFEST + layers)
    together = CampaignDigests(campaign, WEIGHTS)
    for shot in (*campaign.shots, *reversed(campaign.shots)):
        identity = together.of(shot)
        assert identity == shot_digests(campaign, shot, WEIGHTS)
        assert identity == ShotDigests.of(dict(identity.settings), identity.encoding)
        sampling = [name for name in identity.settings if name.startswith("sampling.")]
        assert list(identity.settings) == [
            "numerics", "dtype", "prompt", *sampling, *(f"weights.{name}" for name in WEIGHTS),
            "subject.embedding", "subject.image", "subject.landmarks",
        ]  # fmt: skip


@pytest.mark.parametrize("scales", [("0.0", "-0.0"), ("-0.0", "0.0")])
@pytest.mark.parametrize("table", [False, True])
def test_minus_zero_is_another_setting_whatever_came_before(folder: Path, scales: tuple[str, str], table: bool) -> None:
    """It equals zero: whoever shares settings of equal value takes one for the other."""
    if table:
        rows = "".join(f"ada,walk,{seed},{scale}\n" for seed, scale in enumerate(scales))
        (folder / "shots.csv").write_text(f"subject,prompt,seed,sampling.guidance_scale\n{rows}")
        manifest = MANIFEST + "shots: {from: shots.csv}\n"
    else:
        manifest = MANIFEST + "shots:\n" + "".join(
            f"  - {{subject: ada, prompt: walk, seeds: [{seed}], sampling: {{guidance_scale: {scale}}}}}\n"
            for seed, scale in enumerate(scales)
        )  # fmt: skip
    campaign = load(folder, manifest)
    together = CampaignDigests(campaign, WEIGHTS)
    found = [repr(together.of(shot).settings["sampling.guidance_scale"]) for shot in campaign.shots]
    assert found == list(scales)


def test_a_picture_that_cannot_be_read_is_one_line(folder: Path) -> None:
    campaign = load(folder)
    (folder / "ada.jpg").unlink()
    with pytest.raises(InputErrors, match=r"ada\.jpg: No such file or directory$"):
        shot_digests(campaign, campaign.shots[0], WEIGHTS)


positive = st.floats(0.0, 1e6, allow_subnormal=False).map(abs)  # no -0.0, which equals 0.0
samplings = st.builds(
    Sampling,
    width=st.integers(1, 20).map(lambda n: 16 * n),
    height=st.integers(1, 20).map(lambda n: 16 * n),
    num_frames=st.integers(0, 30).map(lambda n: 4 * n + 1),
    fps=st.integers(1, 60).map(float),
    num_inference_steps=st.integers(1, 60),
    flow_shift=positive.filter(bool),
    sigma_schedule=st.sampled_from(["lynx", "diffusers"]),
    guidance_scale=positive,
    guidance_scale_i=st.none() | positive,
    ip_scale=positive,
    ref_scale=positive,
    negative_prompt=st.text(max_size=5),
    reference_latent=st.sampled_from(["mode", "sample"]),
    seed=st.integers(0, 2**63 - 1),
)


@pytest.fixture(scope="module")
def one_campaign(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("one")
    write(folder)
    return load(folder)


@given(sampling=samplings, other=samplings, names=st.sets(st.sampled_from(sorted(Sampling.model_fields)), min_size=1))
def test_different_sampling_different_latents(
    one_campaign: Any, sampling: Sampling, other: Sampling, names: set[str]
) -> None:
    mixed = sampling.model_copy(update={name: getattr(other, name) for name in names})
    assume(mixed != sampling)
    shot = one_campaign.shots[0]
    a, b = (shot_digests(one_campaign, replace(shot, sampling=s), WEIGHTS) for s in (sampling, mixed))
    assert a.video != b.video
    only_fps = mixed.model_copy(update={"fps": sampling.fps}) == sampling
    assert (a.latents == b.latents) == only_fps
    texts = clean_prompt(sampling.negative_prompt), clean_prompt(mixed.negative_prompt)
    same_text = mixed.model_copy(update={"fps": sampling.fps, "negative_prompt": sampling.negative_prompt}) == sampling
    assert bool(changed(a.settings, b.settings)) != (only_fps or (same_text and texts[0] == texts[1]))
