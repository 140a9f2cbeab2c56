"""The offline checkpoint: reproducible, loadable by the stock libraries, alive, and never half there."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from lynx_parallel.demo import checkpoint, places, tiny
from lynx_parallel.errors import CheckpointError, ClusterError
from lynx_parallel.inputs.cache_root import cache_root

# Every tensor's name, shape and bytes. If this changes, users' cached copies no longer equal a fresh build:
# give places.CHECKPOINT_NAME a new version together with the new value here.
TENSORS_SHA256 = "1a596510573bb7a974939916745c92fd07a5ec24f6c272a317cf51fe2d96ae0b"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint.ensure_demo(tmp_path_factory.mktemp("demo") / "tiny")


def digests(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_every_build_has_the_same_bytes(root: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    subprocess.run([sys.executable, "-m", "lynx_parallel.demo.checkpoint", str(again)], check=True, capture_output=True)
    assert digests(again) == digests(root)
    assert sum(path.stat().st_size for path in root.rglob("*")) < 15e6


def test_tensors_are_the_pinned_ones(root: Path) -> None:
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.safetensors")):
        for key, value in sorted(load_file(path).items()):
            digest.update(f"{path.relative_to(root).as_posix()}:{key}:{value.dtype}:{value.shape}\n".encode())
            digest.update(value.tobytes())
    assert (places.CHECKPOINT_NAME, digest.hexdigest()) == ("demo-tiny-v1", TENSORS_SHA256)


def test_no_machine_path_is_written(root: Path) -> None:
    for path in root.rglob("*.json"):
        assert str(root.parent) not in path.read_text()


def test_adapters_have_the_reference_layout(root: Path) -> None:
    def shapes(path: str) -> dict[str, list[int]]:
        with safe_open(root / path, "numpy") as file:
            return {key: file.get_slice(key).get_shape() for key in file.keys()}

    full, lite, ref = (shapes(f"{name}_layers.safetensors") for name in ("full/ip", "lite/ip", "full/ref"))
    assert full["2.registers"] == [1, 16, 96]
    assert full["2.to_k_ip.weight"] == [96, 96]
    assert set(ref) == {f"{i}.to_{kv}_ref.{p}" for i in range(3) for kv in "kv" for p in ("weight", "bias")}
    # Lite: blocks 0 and 2 of three, no bias, no registers, and another input size than full.
    assert lite == {f"{i}.to_{kv}_ip.weight": [96, 64] for i in range(2) for kv in "kv"}
    assert shapes("full/resampler.safetensors")["norm_out.weight"] == [96]
    assert shapes("lite/resampler.safetensors")["norm_out.weight"] == [64]


def test_tokenizer_tells_all_prompts_apart(root: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(root / "wan/tokenizer")
    prompts = ["A cat.", "A bat.", "Grüße", "Grusse", "日本", "日木", "🎃", "tab\tnew\nline", "<0x41>", ""]
    encoded = [tuple(tokenizer(prompt).input_ids) for prompt in prompts]
    assert len(set(encoded)) == len(prompts)
    for prompt, ids in zip(prompts, encoded, strict=True):
        assert 2 not in ids, f"{prompt!r} has unknown pieces"
        assert ids[-1] == 1
        assert max(ids) < tiny.VOCAB
    assert tokenizer.decode(encoded[2], skip_special_tokens=True) == "Grüße"
    padded = tokenizer("A cat.", padding="max_length", max_length=512).input_ids
    assert padded[-1] == 0
    assert len(padded) == 512


def test_stock_pipeline_loads_it_and_makes_moving_pictures(root: Path) -> None:
    import torch
    from diffusers import WanPipeline

    pipeline = WanPipeline.from_pretrained(root / "wan")
    pipeline.set_progress_bar_config(disable=True)
    assert all(p.dtype == torch.float32 for p in pipeline.transformer.parameters())

    def video(prompt: str) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        size = {"height": 64, "width": 96, "num_frames": 9, "num_inference_steps": 3}
        return pipeline(prompt, generator=generator, output_type="pt", **size).frames  # [1,F,3,H,W] in 0..1

    a, b = video("A cat walks in the snow."), video("Two boats at night.")
    assert torch.isfinite(a).all()
    assert 0.1 < a.std() < 0.3
    assert ((a == 0) | (a == 1)).float().mean() < 0.1, "saturated"
    assert (a[:, 1:] - a[:, :-1]).std() > 0.05, "nothing moves"
    assert (a - b).std() > 0.05, "the prompt changes nothing"


def test_pictures_move_the_reference_latent(root: Path) -> None:
    import torch
    from diffusers import AutoencoderKLWan

    vae = AutoencoderKLWan.from_pretrained(root / "wan/vae")
    ramp = torch.linspace(-1, 1, 64).expand(1, 3, 1, 64, 64)
    with torch.no_grad():
        across, down = (vae.encode(p).latent_dist.mode() for p in (ramp, ramp.mT))
    assert (across - down).std() > 0.1 * across.std()


def test_cache_root_prefers_own_variable_then_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.delenv("LYNX_CACHE", raising=False)
    assert cache_root() == tmp_path / ".cache/lynx-parallel"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg/lynx-parallel"
    monkeypatch.setenv("LYNX_CACHE", str(tmp_path / "own"))
    assert checkpoint.demo_root() == tmp_path / "own/demo-tiny-v1"


def test_asking_where_it_is_imports_no_torch() -> None:
    code = (
        "import sys; from lynx_parallel.demo.checkpoint import demo_root, is_built; demo_root(); is_built();"
        "print([m for m in ('torch', 'diffusers', 'transformers', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def fake_build(root: Path) -> None:
    (root / "weights").write_bytes(b"1234")
    (root / checkpoint.INVENTORY).write_text(json.dumps({"weights": 4}))


def test_a_failed_build_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fails(root: Path) -> None:
        (root / "weights").write_bytes(b"12")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "build", fails)
    with pytest.raises(ClusterError, match="No space left on device"):
        checkpoint.ensure_demo(tmp_path / "tiny")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_demo_is_replaced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(checkpoint, "build", fake_build)
    root = checkpoint.ensure_demo(tmp_path / "tiny")
    (root / "weights").write_bytes(b"12")
    assert not checkpoint.is_built(root)
    assert checkpoint.is_built(checkpoint.ensure_demo(root))
    assert list(tmp_path.iterdir()) == [root]


def test_a_folder_of_something_else_is_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(checkpoint, "build", fake_build)
    theirs = tmp_path / "documents"
    theirs.mkdir()
    (theirs / "thesis.txt").write_text("years of work")
    with pytest.raises(CheckpointError, match="not a demo checkpoint"):
        checkpoint.ensure_demo(theirs)
    assert [path.name for path in tmp_path.rglob("*")] == ["documents", "thesis.txt"]


def test_the_loser_of_a_race_keeps_the_winners_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    root = tmp_path / "tiny"

    def overtaken(scratch: Path) -> None:
        fake_build(scratch)
        root.mkdir()
        fake_build(root)
        (root / "winner").touch()

    monkeypatch.setattr(checkpoint, "build", overtaken)
    assert checkpoint.ensure_demo(root) == root
    assert (root / "winner").exists()
    assert list(tmp_path.iterdir()) == [root]
