"""Which files the weights are, and what they hash to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import lynx_parallel.plan.hashing
from lynx_parallel.demo import tiny
from lynx_parallel.errors import CheckpointError, ClusterError
from lynx_parallel.inputs.model_config import transformer_config
from lynx_parallel.inputs.pipeline import ModelSpec
from lynx_parallel.inputs.weight_files import COMPONENTS, WeightFiles
from lynx_parallel.plan.hashing import weight_digests
from lynx_parallel.plan.weights import find_weights

ORGANISATION, NAME, REVISION = "example", "wan", "0123456789abcdef0123456789abcdef01234567"


def spec(base: str, adapter: str = "demo:full", ref: str | None = None) -> ModelSpec:
    adapters = {"resampler": adapter, "id": adapter, **({"ref": ref} if ref else {})}
    return ModelSpec.model_validate({"base": base, "adapters": adapters})


def write_base(folder: Path) -> Path:
    for component in COMPONENTS:
        (folder / component).mkdir(parents=True)
        (folder / component / "config.json").write_text(json.dumps({"component": component}))
    return folder


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WeightFiles:
    """Made-up weights, and a cache folder of the test's own."""
    monkeypatch.setenv("LYNX_CACHE", str(tmp_path / "cache"))
    base = write_base(tmp_path / "base")
    for name in ("resampler", "id"):
        (tmp_path / name).write_text(name)
    return WeightFiles(base, tmp_path / "resampler", tmp_path / "id")


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read to be hashed."""
    names: list[str] = []
    real = lynx_parallel.plan.hashing.sha256_file
    monkeypatch.setattr(
        lynx_parallel.plan.hashing, "sha256_file", lambda path: (names.append(path.name), real(path))[1]
    )
    return names


def test_what_is_hashed(files: WeightFiles, tmp_path: Path) -> None:
    assert set(weight_digests(files)) == {*(f"base/{name}/config.json" for name in COMPONENTS), "resampler", "id"}
    (tmp_path / "ref").write_text("ref")
    assert "ref" in weight_digests(WeightFiles(files.base, files.resampler, files.id, tmp_path / "ref"))


def test_a_file_is_read_once(files: WeightFiles, hashed: list[str]) -> None:
    first = weight_digests(files)
    assert len(hashed) == 7
    assert weight_digests(files) == first
    assert len(hashed) == 7

    # Touched but equal: read again, the same digest. Changed: another.
    os.utime(files.id, ns=(1, 1))
    assert weight_digests(files) == first
    assert hashed[7:] == ["id"]
    files.id.write_text("di")
    os.utime(files.id, ns=(2, 2))
    assert weight_digests(files)["id"] != first["id"]
    files.id.write_text("longer")
    os.utime(files.id, ns=(2, 2))
    assert weight_digests(files)["id"] not in ("", first["id"])
    assert hashed[8:] == ["id", "id"]


def test_a_link_is_its_target(files: WeightFiles, hashed: list[str], tmp_path: Path) -> None:
    first = weight_digests(files)
    (tmp_path / "link").symlink_to(files.id)
    linked = weight_digests(WeightFiles(files.base, files.resampler, tmp_path / "link"))
    assert linked == first
    assert len(hashed) == 7


@pytest.mark.parametrize("name", [".DS_Store", ".nfs0000000001", ".cache/state.json"])
def test_hidden_files_do_not_count(files: WeightFiles, name: str) -> None:
    first = weight_digests(files)
    path = files.base / "vae" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("x")
    assert weight_digests(files) == first
    (files.base / "vae" / "more.json").write_text("x")
    assert weight_digests(files).keys() - first.keys() == {"base/vae/more.json"}


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"[1]", b"1", b'"ab"', b"null", b"\xff", b"[" * 10**5, b'{"KEY": 1}', b'{"KEY": [1, 2]}',
     b'{"KEY": [SIZE, MTIME, null]}', b'{"KEY": [SIZE, MTIME, "abc"]}', b'{"KEY": {"0": 1}}'],
)  # fmt: skip
def test_a_damaged_cache_is_as_good_as_none(files: WeightFiles, tmp_path: Path, content: bytes) -> None:
    first = weight_digests(files)
    cache, status = tmp_path / "cache" / "digests.json", files.id.stat()
    assert cache.exists()
    content = content.replace(b"KEY", os.path.realpath(files.id).encode())
    content = content.replace(b"SIZE", str(status.st_size).encode())
    cache.write_bytes(content.replace(b"MTIME", str(status.st_mtime_ns).encode()))
    assert weight_digests(files) == first
    assert set(json.loads(cache.read_text())) == {
        os.path.realpath(path) for path in (files.id, files.resampler, *files.base.rglob("*.json"))
    }


def test_a_cache_that_cannot_be_written(files: WeightFiles, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("in the way")
    assert weight_digests(files) == weight_digests(files)
    assert (tmp_path / "cache").read_text() == "in the way"


def test_an_interrupted_run_keeps_what_it_has(files: WeightFiles, hashed: list[str], tmp_path: Path) -> None:
    files.id.unlink()
    with pytest.raises(CheckpointError, match=rf"^{files.id}: No such file or directory$"):
        weight_digests(files)
    files.id.write_text("id")
    weight_digests(files)
    assert hashed.count("config.json") == 5


@pytest.mark.parametrize("component", COMPONENTS)
def test_a_base_that_is_none(files: WeightFiles, component: str) -> None:
    (files.base / component / "config.json").unlink()
    expected = rf"{component}: missing: is .*base a Wan model in diffusers layout\?"
    with pytest.raises(CheckpointError, match=expected):
        weight_digests(files)
    (files.base / component).rmdir()
    with pytest.raises(CheckpointError, match=expected):
        weight_digests(files)


def test_transformer_config(files: WeightFiles) -> None:
    config = files.base / "transformer" / "config.json"
    with pytest.raises(CheckpointError, match="num_layers: None: expected a whole number from 1 to 1000"):
        transformer_config(files)
    config.write_text(json.dumps(tiny.TRANSFORMER))
    assert transformer_config(files) == tiny.TRANSFORMER
    config.write_text("{")
    with pytest.raises(CheckpointError, match=r"is .* a Wan model in diffusers layout\?"):
        transformer_config(files)
    config.unlink()
    with pytest.raises(CheckpointError, match="No such file or directory: is "):
        transformer_config(files)


def test_local_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    base, adapter = str(write_base(tmp_path / "base")), str(tmp_path / "a.safetensors")
    assert find_weights(spec(base, adapter)) == WeightFiles(Path(base), Path(adapter), Path(adapter))
    assert find_weights(spec("~/base", adapter)).base == Path(base)
    monkeypatch.chdir(tmp_path)
    # Ranks have other working folders.
    assert find_weights(spec("./base", "a.safetensors", ref="a.safetensors")) == WeightFiles(
        Path(base), Path(adapter), Path(adapter), Path(adapter)
    )


def test_demo(demo: Path) -> None:
    full = demo / "full"
    assert find_weights(spec("demo:tiny", ref="demo:full")) == WeightFiles(
        demo / "wan", full / "resampler.safetensors", full / "ip_layers.safetensors", full / "ref_layers.safetensors"
    )
    lite = demo / "lite"
    assert find_weights(spec("demo:tiny", "demo:lite")) == WeightFiles(
        demo / "wan", lite / "resampler.safetensors", lite / "ip_layers.safetensors"
    )
    assert all(path.exists() for path in (lite / "resampler.safetensors", full / "ref_layers.safetensors"))
    assert transformer_config(find_weights(spec("demo:tiny")))["num_attention_heads"] == 4


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (spec("demo:full"), "demo:full: no such demo weights here; demo:tiny"),
        (spec("demo:tiny", "demo:tiny"), "demo:tiny: no such demo weights here; demo:full or demo:lite"),
        (spec("demo:tiny", "demo:huge"), "demo:huge: no such demo weights here; demo:full or demo:lite"),
        (spec("demo:tiny", ref="demo:lite"), "demo:lite: no such demo weights here; demo:full"),
    ],
)
def test_unknown_demo_names(demo: Path, model: ModelSpec, said: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        find_weights(model)
    assert str(caught.value) == said


def test_no_place_for_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").write_text("in the way")
    monkeypatch.setenv("LYNX_CACHE", str(tmp_path / "cache"))
    with pytest.raises(
        ClusterError, match=r"building the demo's files failed: cannot write .* Not a directory"
    ) as caught:
        find_weights(spec("demo:tiny"))
    assert "\n" not in str(caught.value)


HUB = """\
import sys
from lynx_parallel.errors import CheckpointError
from lynx_parallel.inputs.pipeline import (ModelSpec)
from lynx_parallel.plan.hashing import weight_digests
from lynx_parallel.plan.weights import find_weights
base, adapter = sys.argv[1:]
try:
    files = find_weights(ModelSpec.model_validate({"base": base, "adapters": {"resampler": adapter, "id": adapter}}))
    print(files.base, files.id, len(weight_digests(files)), "torch" in sys.modules, sep="\\n")
except CheckpointError as error:
    print(f"error: {error}")
"""


def hub(home: Path, base: str, adapter: str) -> list[str]:
    """What a process without network makes of hub names; its constants are read when it starts."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        assert name not in os.environ
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(home), "LYNX_CACHE": str(home / "lynx")}
    done = subprocess.run(
        [sys.executable, "-c", HUB, base, adapter],
        env=environment, cwd=home, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.splitlines()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A hub cache with one base and one adapter, as huggingface_hub lays it out."""
    for repository in (f"models--{ORGANISATION}--{NAME}", f"models--{ORGANISATION}--lynx"):
        folder = tmp_path / "hub" / repository
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text(REVISION)
        (folder / "refs" / "v2").write_text(REVISION)
        (folder / "blobs").mkdir()
    base = write_base(tmp_path / "hub" / f"models--{ORGANISATION}--{NAME}" / "snapshots" / REVISION)
    (base / "model_index.json").write_text("{}")
    blob = tmp_path / "hub" / f"models--{ORGANISATION}--lynx" / "blobs" / "abc"
    blob.write_text("adapter")
    snapshot = tmp_path / "hub" / f"models--{ORGANISATION}--lynx" / "snapshots" / REVISION / "lite"
    snapshot.mkdir(parents=True)
    (snapshot / "ip.safetensors").symlink_to(blob)
    return tmp_path


@pytest.mark.parametrize("revision", ["", "@main", "@v2", f"@{REVISION}"])
def test_hub_names_without_network(home: Path, revision: str) -> None:
    adapter = f"hub:{ORGANISATION}/lynx{revision}/lite/ip.safetensors"
    base, file, count, torch = hub(home, f"{ORGANISATION}/{NAME}{revision}", adapter)
    snapshots = home / "hub" / f"models--{ORGANISATION}--{NAME}" / "snapshots"
    assert Path(base) == snapshots / REVISION
    assert Path(file).name == "ip.safetensors"
    assert Path(file).read_text() == "adapter"
    assert (count, torch) == ("7", "False")


@pytest.mark.parametrize(
    ("base", "adapter", "named"),
    [
        ("example/nothing", "hub:example/lynx/lite/ip.safetensors", "example/nothing"),
        ("example/wan@v3", "hub:example/lynx/lite/ip.safetensors", "example/wan@v3"),
        ("example/wan", "hub:example/lynx/full/ip.safetensors", "hub:example/lynx/full/ip.safetensors"),
        ("example/wan", "hub:example/lynx@v3/lite/ip.safetensors", "hub:example/lynx@v3/lite/ip.safetensors"),
    ],
)
def test_what_the_hub_cache_lacks_is_one_line(home: Path, base: str, adapter: str, named: str) -> None:
    (line,) = hub(home, base, adapter)
    assert line.startswith(f"error: {named}: not in the local hub cache, and the download failed: ")
