"""A rank in this process, without Ray: what it writes, what it keeps, what it says of the way it was made."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from lynx_parallel.errors import RenderError, Stopped, SubjectError
from lynx_parallel.inputs.decode_memory import VideoSize
from lynx_parallel.inputs.layout import Layout
from lynx_parallel.inputs.load import load_campaign
from lynx_parallel.inputs.manifest import Shot
from lynx_parallel.inputs.memory import Task
from lynx_parallel.inputs.pipeline import Video
from lynx_parallel.inputs.sampling import REFERENCE_PROMPT
from lynx_parallel.model.attention import Kernel, sdpa
from lynx_parallel.output.crops import Crops
from lynx_parallel.output.folder import Output
from lynx_parallel.plan.weights import find_face_models, find_weights
from lynx_parallel.rank.memory import room_on
from lynx_parallel.rank.messages import EncodeOrder, RenderOrder
from lynx_parallel.rank.rank import Rank, RankConfig, Rendered
from lynx_parallel.stages.resume_state import load_resume_state
from lynx_parallel.stages.video import encode_video, probe
from tests.helpers.small_renders import FACES


@pytest.fixture
def shots(campaign: Path) -> tuple[Shot, ...]:
    return load_campaign(campaign, ["sampling.num_inference_steps=2"]).shots


@pytest.fixture
def load(campaign: Path) -> RankConfig:
    pipeline = load_campaign(campaign).pipeline
    return RankConfig(find_weights(pipeline.model), "float32", denoise=True, face=find_face_models(pipeline.face))


def make_rank(load: RankConfig, shots: tuple[Shot, ...]) -> Rank:
    rank = Rank("cpu", 1, load)
    rank.encode_prompts([shot.text for shot in shots])
    rank.load()
    rank.join(Layout(), 0, ("", 0))
    return rank


def order_of(shot: Shot, folder: Path) -> RenderOrder:
    parts = {"video": folder / "video.part", "latents": folder / "latents.part"}
    key, crops = shot.subject.id.encode().hex().ljust(64, "0"), Crops(folder, shot.subject.id, "source")
    return RenderOrder(shot, "digest", {}, key, crops, folder / "partial", Video(), parts, folder)


def render(rank: Rank, shot: Shot, folder: Path) -> Rendered:
    folder.mkdir(parents=True, exist_ok=True)
    order = order_of(shot, folder)
    rank.prepare(order)
    rank.render(order)
    made = rank.finish(order)
    assert made is not None
    return made


def test_a_shot(load: RankConfig, shots: tuple[Shot, ...], tmp_path: Path) -> None:
    rank = make_rank(load, shots)
    made = render(rank, shots[0], tmp_path / "a")
    assert probe(tmp_path / "a" / "video.part").frames == 9
    assert load_file(tmp_path / "a" / "latents.part")["latents"].shape == (1, 16, 3, 6, 8)
    assert made.exactness == {}
    assert (made.conditioning["reference"], made.conditioning["identity"]) == (2, 2)
    assert set(shown(tmp_path / "a")) == {"id.png", "ref-256.png"}

    again = render(rank, shots[1], tmp_path / "a")  # the same subject, another prompt
    assert again.conditioning["subject kept"] == 1
    assert "reference" not in again.conditioning
    assert (again.conditioning["text"], again.conditioning["reference kept"]) == (1, 3)


def test_the_cache_gives_the_same_latents(load: RankConfig, shots: tuple[Shot, ...], tmp_path: Path) -> None:
    first = render(make_rank(load, shots), shots[0], tmp_path / "one")
    second = render(make_rank(load, shots), shots[0], tmp_path / "two")
    assert second.conditioning["subject kept"] == 1
    assert first.outputs["latents"]["sha256"] == second.outputs["latents"]["sha256"]


def test_a_cached_person_of_another_schema_is_made_again(
    load: RankConfig, shots: tuple[Shot, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = replace(order_of(shots[0], tmp_path), subject_key="5" * 64)
    rank = make_rank(load, shots)
    for schema, kept in ((1, False), (1, True), (2, False), (2, True)):
        monkeypatch.setattr("lynx_parallel.subject.stored_person.SCHEMA", schema)
        rank.prepare(order)
        assert rank._preparation.from_cache == kept


def test_tiled_decode_says_so(load: RankConfig, shots: tuple[Shot, ...], tmp_path: Path) -> None:
    large = replace(shots[0], sampling=shots[0].sampling.model_copy(update={"width": 320, "num_frames": 1}))
    plain = render(make_rank(load, shots), large, tmp_path / "plain")
    tiled = render(make_rank(replace(load, tiled_decode=True), shots), large, tmp_path / "tiled")
    assert (plain.exactness, tiled.exactness) == ({}, {"decode": "tiled"})
    assert plain.outputs["latents"] == tiled.outputs["latents"]
    assert plain.outputs["video"] != tiled.outputs["video"]  # wider than a tile: other pixels
    late = render(make_rank(replace(load, tiled_decode=True, shard=True), shots), large, tmp_path / "late")
    assert late.outputs["video"] == tiled.outputs["video"]  # where the weights wait for the layout, too


@pytest.mark.parametrize("kind", [{"denoise": False}, {"shard": True}])
def test_encoding_needs_no_transformer(
    kind: dict[str, bool], load: RankConfig, shots: tuple[Shot, ...], tmp_path: Path
) -> None:
    made = render(make_rank(load, shots), shots[0], tmp_path / "a")
    encoder = Rank("cpu", 1, replace(load, **kind))
    encoder.load()
    assert encoder.pipeline is None
    parts = {"video": tmp_path / "again.part"}
    again = encoder.encode(EncodeOrder(shots[0], Video(), tmp_path / "a" / "latents.part", parts, tmp_path / "log"))
    assert again.outputs["video"] == made.outputs["video"]


def test_stop_saves_and_the_next_goes_on(load: RankConfig, shots: tuple[Shot, ...], tmp_path: Path) -> None:
    rank = make_rank(load, shots)
    rank.stop()
    with pytest.raises(Stopped, match="after step 1 of 2"):
        render(rank, shots[0], tmp_path / "a")
    assert load_resume_state(tmp_path / "a" / "partial", "digest", torch.device("cpu")).steps_done == 1
    again, order = make_rank(load, shots), order_of(shots[0], tmp_path / "a")
    assert again.prepare(order) == 1
    assert again.prepare(replace(order, digest="another")) == 0
    assert again.prepare(replace(order, resume_state=tmp_path / "missing")) == 0
    made = render(again, shots[0], tmp_path / "a")
    whole = render(make_rank(load, shots), shots[0], tmp_path / "b")
    assert made.outputs["latents"] == whole.outputs["latents"]


def test_folders_that_a_machine_does_not_see(load: RankConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rank, output = Rank("cpu", 1, load), Output(tmp_path / "out")
    with output.probe() as probe:
        assert rank.misses(probe, [tmp_path]) == []
        assert rank.misses(probe, [tmp_path, tmp_path / "weights"]) == [str(tmp_path / "weights")]
    monkeypatch.setattr("lynx_parallel.rank.visibility.PROBE_WITHIN_S", 0.3)
    assert rank.misses(probe, []) == [f"{tmp_path / 'out'}, the output folder"]
    monkeypatch.undo()
    threading.Timer(0.1, probe.touch).start()  # a shared folder takes a moment
    assert rank.misses(probe, []) == []


def test_a_rank_that_the_driver_has_lost_ends_its_shot(
    load: RankConfig, shots: tuple[Shot, ...], tmp_path: Path
) -> None:
    """Cut off, it may still reach the folder in which its successor works."""
    rank = make_rank(replace(load, hung_after=0.0), shots)
    with pytest.raises(RenderError, match="no word from the driver"):
        render(rank, shots[0], tmp_path / "a")
    assert not (tmp_path / "a" / "partial").exists()


def test_a_picture_without_a_face(load: RankConfig, shots: tuple[Shot, ...], tmp_path: Path) -> None:
    picture = tmp_path / "black.png"
    Image.fromarray(np.zeros((300, 300, 3), np.uint8)).save(picture)
    shot = replace(shots[0], subject=replace(shots[0].subject, image=picture))
    rank = make_rank(load, shots)
    with pytest.raises(SubjectError, match=r"black\.png: no face .*use a picture of one face"):
        rank.prepare(replace(order_of(shot, tmp_path), subject_key="f" * 64))
    rank.render(order_of(shot, tmp_path))
    assert not (tmp_path / "latents.part").exists()
    render(rank, shots[0], tmp_path / "next")


def test_a_kernel_that_is_not_there(load: RankConfig, tmp_path: Path) -> None:
    rank = Rank("cpu", 1, replace(load, attention="flash3"))
    assert rank.hello().attention == "none"
    [check] = rank.check(tmp_path)
    assert check.detail.startswith("--attention flash3: not available on cpu in float32: runs on CUDA only")


def test_a_ring_that_needs_another_kernel_says_so(
    load: RankConfig, shots: tuple[Shot, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel without the log-sum-exp serves every layout but a ring."""
    asked: list[tuple[torch.dtype, bool]] = []

    def choose(name: str, device: torch.device, dtype: torch.dtype, *, need_lse: bool = False) -> Kernel:
        asked.append((dtype, need_lse))
        lines = ("flash3 is broken", *(["flash gives no log-sum-exp"] if need_lse else []))
        return Kernel("sdpa" if need_lse else "flash", sdpa, lines)

    monkeypatch.setattr("lynx_parallel.rank.rank.choose_kernel", choose)
    rank = make_rank(load, shots)
    hello = rank.hello()
    assert (hello.attention, hello.warnings) == ("flash", ("flash3 is broken",))
    plain = render(rank, shots[0], tmp_path / "plain")
    assert (plain.exactness, plain.warnings) == ({}, ())

    rank._kernel(need_lse=True)  # what ``join`` does for a ring
    rank.layout = SimpleNamespace(size=1, ring=2)  # type: ignore[assignment]
    ring = render(rank, shots[0], tmp_path / "ring")
    assert (ring.exactness, ring.warnings) == ({"attention": "sdpa"}, ("flash gives no log-sum-exp",))
    assert render(rank, shots[0], tmp_path / "again").warnings == ()  # once
    assert asked == [(torch.float32, False), (torch.float32, True)]


def test_a_rank_runs_the_vae_as_asked(load: RankConfig, shots: tuple[Shot, ...], tmp_path: Path) -> None:
    """Whether it renders, or encodes saved latents alone."""
    made = render(make_rank(replace(load, vae_dtype="bfloat16"), shots), shots[0], tmp_path / "a")
    outputs = {}
    for vae_dtype in ("float32", "tf32", "bfloat16"):
        torch.backends.cudnn.allow_tf32 = True  # torch's default
        rank = Rank("cpu", 1, replace(load, denoise=False, vae_dtype=vae_dtype))  # type: ignore[arg-type]
        assert torch.backends.cudnn.conv.fp32_precision == "ieee"
        rank.load()
        seen: set[str] = set()
        rank.writer.vae.decoder.register_forward_pre_hook(
            lambda *_, seen=seen: seen.add(torch.backends.cudnn.conv.fp32_precision)
        )
        parts = {"video": tmp_path / "again.part"}
        latents = tmp_path / "a" / "latents.part"
        outputs[vae_dtype] = rank.encode(EncodeOrder(shots[0], Video(), latents, parts, tmp_path / "log")).outputs[
            "video"
        ]
        assert seen == {"tf32" if vae_dtype == "tf32" else "ieee"}
    assert outputs["float32"] == outputs["tf32"]  # TF32 exists on CUDA alone
    assert outputs["bfloat16"] == made.outputs["video"] != outputs["float32"]


def test_projections_stay_where_the_card_has_room(load: RankConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the card's size is invented: no GPU is asked."""
    rank = Rank("cpu", 1, replace(load, tasks=(Task(VideoSize(64, 48, 9), Layout()),)))
    assert not room_on(rank.device, rank.config).keep_projections  # on the CPU they are mapped again
    rank.device = torch.device("cuda")
    for memory, room in ((8 * 10**9, True), (10**9, False)):
        card = SimpleNamespace(total_memory=memory)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device, card=card: card)
        assert room_on(rank.device, rank.config).keep_projections is room
    card.total_memory = 8 * 10**9
    rank.config = load  # without tasks, the largest video counts, whose decoding takes 19 GB
    assert not room_on(rank.device, rank.config).keep_projections
    card.total_memory = 23 * 10**9
    assert room_on(rank.device, rank.config).keep_projections
    rank.config = replace(load, vae_dtype="tf32")
    assert not room_on(rank.device, rank.config).keep_projections


def test_prompts_that_one_rank_encoded_are_read_by_another(
    load: RankConfig, shots: tuple[Shot, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = Output(tmp_path / "shared").prompts("salt")
    load = replace(load, prompts=files)
    texts = [shots[0].text, shots[0].sampling.negative_prompt, REFERENCE_PROMPT]
    assert files.missing(texts) == texts
    alone = render(make_rank(replace(load, prompts=None), shots), shots[0], tmp_path / "alone")
    Rank("cpu", 1, load).encode_prompts(texts)
    assert files.missing(texts) == []

    class Loaded(Exception):
        pass

    def refuse(*_: object, **__: object) -> None:
        raise Loaded

    monkeypatch.setattr("lynx_parallel.stages.prompt.TextEncoder.__init__", refuse)
    other = Rank("cpu", 1, load)
    other.load()
    other.join(Layout(), 0, ("", 0))
    made = render(other, shots[0], tmp_path / "other")
    assert made.outputs["latents"]["sha256"] == alone.outputs["latents"]["sha256"]

    files.path(texts[0]).write_bytes(b"damaged")  # counts as missing
    with pytest.raises(Loaded):
        other.prepare(replace(order_of(shots[0], tmp_path / "other"), subject_key="0" * 64))


def test_prompts_that_cannot_be_written_stay_in_memory(
    load: RankConfig, shots: tuple[Shot, ...], tmp_path: Path
) -> None:
    (tmp_path / ".lynx").write_text("a file in the folder's place")
    load = replace(load, prompts=Output(tmp_path).prompts("salt"))
    assert render(make_rank(load, shots), shots[0], tmp_path / "out").outputs


def test_a_rank_checks_itself(load: RankConfig, tmp_path: Path) -> None:
    checks = Rank("cpu", 1, load).check(tmp_path)
    assert [(check.name, check.ok) for check in checks] == [
        ("memory", True), ("attention", True), ("decode", True), ("output", True), ("ffmpeg", True)
    ]  # fmt: skip


def test_a_broken_gpu_is_reported_by_the_check_and_not_by_hello(
    load: RankConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One GPU of many must not end the run, as an error of ``hello`` would."""

    def broken(*_: object, **__: object) -> Kernel:
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device")

    monkeypatch.setattr("lynx_parallel.rank.rank.choose_kernel", broken)
    rank = Rank("cpu", 1, load)
    assert rank.hello().attention == "none"
    [check] = rank.check(tmp_path)
    assert not check.ok
    assert check.detail.startswith("CUDA error: no kernel image")
    assert check.remedy.startswith("This torch build has no code for this GPU.")


@pytest.mark.parametrize(
    ("video", "formats"),
    [
        (Video(codec="h265", crf=31), ((832, 480, 16.0),)),
        (Video(codec="h264", lossless=True), ((64, 48, 8.0), (480, 832, 24.0))),
    ],
)
def test_the_encoder_is_checked_with_the_runs_own_settings(
    load: RankConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    video: Video,
    formats: tuple[tuple[int, int, float]],
) -> None:
    """An encoder may lack one codec, or refuse one size. Only the output folder need be writable."""
    asked: list[tuple[object, ...]] = []

    def encode(frames: np.ndarray, path: Path, *, lossless: bool, crf: int, **options: Any) -> None:
        encode_video(frames, path, lossless=lossless, crf=crf, **options)
        found = probe(path)
        asked.append((found.width, found.height, found.fps, found.codec, found.frames, crf, lossless, path.parent))

    monkeypatch.setattr("lynx_parallel.rank.selfcheck.encode_video", encode)
    monkeypatch.setattr("tempfile.tempdir", "/proc/nowhere")
    checks = Rank("cpu", 1, replace(load, video=video, formats=formats)).check(tmp_path)
    assert [check.ok for check in checks if check.name == "ffmpeg"] == [True] * len(formats)
    folder = tmp_path / ".lynx"
    own = (video.codec, 3, video.crf, video.lossless, folder)
    assert asked == [(width, height, fps, *own) for width, height, fps in formats]
    assert list(folder.iterdir()) == []


def test_an_ffmpeg_that_cannot_encode_shows_before_a_shot_is_made(
    load: RankConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path, detail in (
        ("/bin/false", "cannot encode: ffmpeg ended"),
        ("/nowhere/ffmpeg", "ffmpeg not found at /now"),
    ):
        monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", path)
        failed = [check for check in Rank("cpu", 1, load).check(tmp_path) if not check.ok]
        assert [check.name for check in failed] == ["ffmpeg"]
        assert detail in failed[0].detail
        assert "IMAGEIO_FFMPEG_EXE" in failed[0].detail + failed[0].remedy  # one of them says what to do


def shown(folder: Path) -> dict[str, bytes]:
    """Pixels of the crops that an output folder shows of the astronaut."""
    crops = folder / ".lynx" / "faces" / "astronaut"
    return {path.name: Image.open(path).tobytes() for path in crops.iterdir()} if crops.exists() else {}


def prepare(rank: Rank, shot: Shot, folder: Path, source: str) -> dict[str, bytes]:
    """As the driver asks for it: a digest of the subject's source as key. Returns what is shown then."""
    folder.mkdir(exist_ok=True)
    size = shot.sampling.reference_size
    key = f"{source}-{size}".encode().hex().ljust(64, "0")
    crops = Crops(folder, shot.subject.id, source, frozenset({size}))
    rank.prepare(replace(order_of(shot, folder), subject_key=key, crops=crops))
    return shown(folder)


def drawn(shot: Shot, shots: tuple[Shot, ...]) -> Shot:
    """The astronaut's shot with the other subject's picture."""
    other = shots[-1].subject
    assert other.id == "drawn"
    return replace(shot, subject=replace(other, id=shot.subject.id))


def test_the_folder_shows_the_picture_that_was_used(load: RankConfig, shots: tuple[Shot, ...], tmp_path: Path) -> None:
    """Also when the subject comes from this machine's cache, or from that of another machine."""
    rank, out = make_rank(load, shots), tmp_path / "out"
    first = prepare(rank, shots[0], out, "picture 1")
    assert set(first) == {"id.png", "ref-256.png"}
    second = prepare(rank, drawn(shots[0], shots), out, "picture 2")
    assert all(second[name] != first[name] for name in first)
    assert prepare(rank, shots[0], out, "picture 1") == first
    assert rank._preparation.from_cache
    assert prepare(make_rank(load, shots), drawn(shots[0], shots), out, "picture 2") == second

    larger = replace(shots[0], sampling=shots[0].sampling.model_copy(update={"reference_size": 384}))
    assert set(prepare(rank, larger, out, "picture 1")) == {"id.png", "ref-384.png"}
    given = replace(shots[0].subject, embedding=FACES / "astronaut.safetensors")
    assert set(prepare(rank, replace(shots[0], subject=given), out, "embedding")) == {"ref-256.png"}


def test_no_old_face_stays_when_the_new_picture_has_none(
    load: RankConfig, shots: tuple[Shot, ...], tmp_path: Path
) -> None:
    rank, out, black = make_rank(load, shots), tmp_path / "out", tmp_path / "black.png"
    prepare(rank, shots[0], out, "picture 1")
    Image.fromarray(np.zeros((300, 300, 3), np.uint8)).save(black)
    with pytest.raises(SubjectError, match="no face"):
        prepare(rank, replace(shots[0], subject=replace(shots[0].subject, image=black)), out, "black picture")
    assert shown(out) == {}


def test_a_face_that_was_found_ahead(
    load: RankConfig, shots: tuple[Shot, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is used for its own subject alone, and gives the same shot."""
    first, other = shots[0], next(shot for shot in shots if shot.subject != shots[0].subject)
    plain = {
        shot.id: render(make_rank(load, shots), shot, tmp_path / f"plain-{shot.subject.id}") for shot in (first, other)
    }
    monkeypatch.setenv("LYNX_CACHE", str(tmp_path / "cache"))  # an empty cache of subjects
    rank = make_rank(load, shots)
    found: list[str] = []
    identify = rank.pipeline.identify
    monkeypatch.setattr(rank.pipeline, "identify", lambda *a, **k: found.append(str(k["image"])) or identify(*a, **k))
    rank.prepare_ahead(other, order_of(other, tmp_path).subject_key)
    assert found == [str(other.subject.image)]
    for shot in (first, other):
        made = render(rank, shot, tmp_path / f"ahead-{shot.subject.id}")
        assert made.outputs["latents"] == plain[shot.id].outputs["latents"]
    assert found == [str(other.subject.image), str(first.subject.image)]
    rank.prepare_ahead(other, order_of(other, tmp_path).subject_key)  # the cache has it
    assert len(found) == 2
