"""Hundreds of damaged checkpoints: each loads, or is refused in one line; nothing in them is executed."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save

from lynx_parallel.demo import tiny
from lynx_parallel.demo.facepack import ensure_facepack
from lynx_parallel.demo.places import RECOGNISER
from lynx_parallel.errors import CheckpointError
from lynx_parallel.inputs.model_config import transformer_config
from lynx_parallel.inputs.weight_files import WeightFiles
from lynx_parallel.model import adapter_files, checkpoints
from lynx_parallel.plan.hashing import weight_digests
from lynx_parallel.subject.arcface import load_arcface
from tests.helpers.fuzzing import MARKER, Bomb, cuts, flips, join, limited, listing, outcome, split

Tensors = dict[str, torch.Tensor]
WEIGHTS = "diffusion_pytorch_model.safetensors"


def single_file(tensors: Tensors, kind: str) -> Tensors:
    """Adapter tensors under the keys of the single-file layout."""
    place = {"id": "cross_attn.ip_adapter", "ref": "self_attn.ref_adapter"}[kind]
    return {f"blocks.{key.replace('.', f'.{place}.', 1)}": tensor for key, tensor in tensors.items()}


class Case:
    """A copy of the demo whose files can be damaged, and the loader that reads each of them."""

    def __init__(self, demo: Path, folder: Path):
        self.demo = demo
        shutil.copytree(demo / "wan", folder / "wan")
        shutil.copytree(demo / "full", folder / "full")
        self.weights = WeightFiles(
            folder / "wan",
            folder / "full/resampler.safetensors",
            folder / "full/ip_layers.safetensors",
            folder / "full/ref_layers.safetensors",
        )
        self.transformer, self.vae = self.weights.base / "transformer", self.weights.base / "vae"
        shutil.copy(ensure_facepack() / RECOGNISER, folder / "arcface.safetensors")
        tensors = load((folder / "arcface.safetensors").read_bytes())
        torch.save(tensors, folder / "arcface.pth")
        for kind, path in (("id", self.weights.id), ("ref", self.weights.ref)):
            assert path is not None
            (folder / f"{kind}_single.safetensors").write_bytes(save(single_file(load(path.read_bytes()), kind)))
        self.files = {
            "transformer": self.transformer / WEIGHTS,
            "vae": self.vae / WEIGHTS,
            "resampler": self.weights.resampler,
            "id": self.weights.id,
            "ref": folder / "full/ref_layers.safetensors",
            "id_single": folder / "id_single.safetensors",
            "ref_single": folder / "ref_single.safetensors",
            "arcface": folder / "arcface.safetensors",
            "arcface_pth": folder / "arcface.pth",
        }
        self.whole = {name: path.read_bytes() for name, path in self.files.items()}

    def load(self, name: str) -> Any:
        path = self.files[name]
        if name.startswith("arcface"):
            return load_arcface(path, sha256=None)
        if name == "resampler":
            return checkpoints.load_resampler(path, dtype=torch.float32)
        if name == "vae":
            return checkpoints.load_vae(self.vae)
        weights = self.weights
        if name.endswith("_single"):
            weights = replace(weights, **{name.removesuffix("_single"): path})
        return checkpoints.load_transformer(weights, dtype=torch.float32)

    def outcome(self, name: str, content: bytes) -> str | None:
        """What loading ends in with this content in that file; the file is whole again afterwards."""
        path = self.files[name]
        path.write_bytes(content)
        try:
            return outcome(lambda: self.load(name), path, (CheckpointError,))
        finally:
            # A new file: tensors of the old one may still be mapped.
            path.unlink()
            path.write_bytes(self.whole[name])


@pytest.fixture(scope="module")
def case(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    folder = tmp_path_factory.mktemp("fuzz")
    yield Case(demo, folder)
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where hostile pickles would leave their mark; none may, and nothing else may be written."""
    marker = tmp_path / "executed"
    monkeypatch.setenv(MARKER, str(marker))
    yield marker
    assert not marker.exists()


SAFETENSORS = ["transformer", "vae", "resampler", "id", "ref", "id_single", "ref_single", "arcface"]
ALL = [*SAFETENSORS, "arcface_pth"]


@pytest.mark.parametrize("name", ALL)
def test_the_whole_file_loads(case: Case, name: str) -> None:
    assert case.outcome(name, case.whole[name]) is None


@pytest.mark.parametrize("name", ALL)
def test_truncated(case: Case, name: str) -> None:
    content = case.whole[name]
    before = listing(case.weights.base.parent)
    for size in cuts(len(content), 10, seed=1):
        assert case.outcome(name, content[:size]), size
    assert listing(case.weights.base.parent) == before


@pytest.mark.parametrize("name", ALL)
def test_a_flipped_bit(case: Case, name: str) -> None:
    """In the body it is another number, and nothing can tell; in the header it mostly is an error."""
    content = case.whole[name]
    header = 8 + int.from_bytes(content[:8], "little") if name in SAFETENSORS else min(2000, len(content))
    for changed in flips(content, 0, header, 14, seed=2):
        case.outcome(name, changed)
    for changed in flips(content, header, len(content), 3, seed=3):
        assert case.outcome(name, changed) is None or name == "arcface_pth"  # a zip archive has checksums


def header_lies(content: bytes) -> Iterator[tuple[str, bytes]]:
    header, body = split(content)
    size = int.from_bytes(content[:8], "little")
    for lie in (0, 1, size - 1, size + 1, size + len(body) + 1, 2**31, 2**40, 2**62, -1, -(2**63)):
        yield f"length {lie}", join(content[8 : 8 + size], body, lie)
    for text in (b"", b"{", b"[]", b"null", b"7", b"\xff\xfe", b"[" * 5000, b'{"a":' * 5000, b'{"a": {}}'):
        yield f"header {text[:9]!r}", join(text, body)
    key = next(key for key in header if header[key].get("shape"))
    start, end = header[key]["data_offsets"]
    shape = header[key]["shape"]
    for offsets in (
        [end, start], [start, end + 4], [start, end - 4], [start + 4, end + 4], [2**40, 2**40 + end - start],
        [-4, end], [start, start], [0, len(body)], [start], "no", None, [0.5, 2],
    ):  # fmt: skip
        yield f"offsets {offsets}", join({**header, key: {**header[key], "data_offsets": offsets}}, body)
    for wrong in ([], [0], [*shape, 1, 2], [2**62, 4], [-1], ["a"], None, {}):
        yield f"shape {wrong}", join({**header, key: {**header[key], "shape": wrong}}, body)
    for dtype in ("I8", "BOOL", "F8_E4M3", "f32", "X", None, 3):
        yield f"dtype {dtype}", join({**header, key: {**header[key], "dtype": dtype}}, body)
    yield "body longer", content + b"\0" * 64
    yield "body twice", content + content
    yield "metadata", join({**header, "__metadata__": [1]}, body)


@pytest.mark.parametrize("name", ["transformer", "resampler", "id_single", "arcface"])
def test_a_header_that_lies(case: Case, name: str) -> None:
    for what, changed in header_lies(case.whole[name]):
        assert case.outcome(name, changed), what


Change = Callable[[Tensors, str], Any]


def _retype(dtype: torch.dtype) -> Change:
    return lambda tensors, key: tensors.update({key: tensors[key].to(dtype)})


def _reshape(*shape: int) -> Change:
    return lambda tensors, key: tensors.update({key: torch.zeros(shape)})


def _add(key: str) -> Change:
    return lambda tensors, _: tensors.update({key: torch.zeros(2, 2)})


CHANGES: dict[str, Change] = {
    "int8": _retype(torch.int8),
    "bool": _retype(torch.bool),
    "int64": _retype(torch.int64),
    "complex": _retype(torch.complex64),
    "scalar": _reshape(),
    "none": _reshape(0),
    "none of many": _reshape(0, 2**40),
    "one number": _reshape(1),
    "five dimensions": _reshape(1, 2, 1, 2, 1),
    "another size": _reshape(7, 5),
    "missing": lambda tensors, key: tensors.pop(key),
    "renamed": lambda tensors, key: tensors.update({f"{key}é": tensors.pop(key)}),
    "surplus": _add("surplus.weight"),
    "key without a name": _add(""),
    "key of two lines": _add("line\nbreak\x1b[31m"),
    "endless key": _add("x" * 100_000),
    "block far away": _add("blocks.99999999999999999999.attn1.to_k.weight"),
    "zero before the number": _add("00.to_k_ip.weight"),
    "other digits": _add("٣.to_k_ip.weight"),
    "endless number": _add("9" * 5000 + ".to_k_ip.weight"),
    "training file": _add("module.optimizer.state"),
    "nothing": lambda tensors, _: tensors.clear(),
}
# A matrix and a vector of each file, and what fixes a size.
KEYS = {
    "transformer": ["blocks.1.attn1.to_q.weight", "patch_embedding.bias"],
    "vae": ["post_quant_conv.weight"],
    "resampler": ["latents", "proj_in.weight", "layers.0.0.to_q.weight", "layers.0.1.1.weight", "proj_out.weight"],
    "id": ["0.to_k_ip.weight", "1.registers", "2.to_v_ip.bias"],
    "ref": ["0.to_k_ref.weight", "2.to_v_ref.bias"],
    "id_single": ["blocks.0.cross_attn.ip_adapter.to_k_ip.weight", "blocks.1.cross_attn.ip_adapter.registers"],
    "ref_single": ["blocks.2.self_attn.ref_adapter.to_v_ref.weight"],
    "arcface": ["body.1.res_layer.1.weight"],
}


@pytest.mark.parametrize("change", CHANGES)
def test_wrong_tensors(case: Case, change: str) -> None:
    for name, keys in KEYS.items():
        for key in keys:
            tensors = load(case.whole[name])
            CHANGES[change](tensors, key)
            line = case.outcome(name, save(tensors))
            assert line, (name, key)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floats_are_converted(case: Case, dtype: torch.dtype) -> None:
    for name in SAFETENSORS:
        tensors = {key: t.to(dtype) if t.is_floating_point() else t for key, t in load(case.whole[name]).items()}
        assert case.outcome(name, save(tensors)) is None, name


def test_transposed(case: Case) -> None:
    for name in ("resampler", "id", "id_single", "arcface"):
        tensors = load(case.whole[name])
        for key, tensor in list(tensors.items()):
            if tensor.ndim == 2 and tensor.shape[0] != tensor.shape[1]:
                changed = save({**tensors, key: tensor.T.contiguous()})
                assert case.outcome(name, changed), (name, key)


def test_keys_of_another_layout(case: Case) -> None:
    for kind in ("id", "ref"):
        plain = load(case.whole[kind])
        other = {key: tensor.clone() for key, tensor in single_file(plain, kind).items()}
        assert "fills the same parameter" in (case.outcome(kind, save(plain | other)) or "")
        key = next(iter(other))
        assert "fills the same parameter" in (case.outcome(kind, save(plain | {key: other[key]})) or "")
        half = {k: t for k, t in plain.items() if k.startswith("0.")}
        assert case.outcome(kind, save(half | {k: t for k, t in other.items() if "blocks.0." not in k})) is None
    for name in SAFETENSORS:
        for other_name in SAFETENSORS:
            same = {name.removesuffix("_single"), other_name.removesuffix("_single")}
            if len(same) == 2:
                assert case.outcome(name, case.whole[other_name]), (name, other_name)
    # The base must not bring what an adapter file brings.
    base = load(case.whole["transformer"])
    stowaway = {"blocks.0.id_adapter.to_k_ip.weight": torch.zeros(tiny.DIM, tiny.DIM)}
    assert "blocks.0.id_adapter.to_k_ip.weight" in (case.outcome("transformer", save(base | stowaway)) or "")


def test_lite_and_full_mixed(case: Case) -> None:
    for name in ("resampler", "id"):
        file = case.files[name].name
        case.outcome(name, (case.demo / "lite" / file).read_bytes())
    lite = replace(case.weights, resampler=case.demo / "lite/resampler.safetensors")
    line = outcome(lambda: adapter_files.check_resampler(lite), lite.resampler, (CheckpointError,))
    assert "both be Lynx full's or both Lynx lite's" in (line or "")


# Configurations

ODD: list[Any] = [None, True, -1, 0, 1.5, 10**9, 10**30, 1e300, float("nan"), "3", "", [], [1], {}, {"a": 1}]


@pytest.mark.parametrize("key", tiny.TRANSFORMER)
def test_transformer_settings(case: Case, key: str) -> None:
    path = case.transformer / "config.json"
    whole = path.read_text()
    config = json.loads(whole)
    without = {k: v for k, v in config.items() if k != key}
    try:
        for changed in (without, *({**config, key: value} for value in ODD)):
            path.write_text(json.dumps(changed))
            # An honest number that does not fit the weights is laid to the weights.
            line = outcome(lambda: case.load("transformer"), case.weights.base.parent, (CheckpointError,))
            outcome(lambda: transformer_config(case.weights), path, (CheckpointError,))
            if key in ("num_layers", "attention_head_dim", "patch_size", "rope_max_seq_len"):
                assert line, changed.get(key)
    finally:
        path.write_text(whole)


@pytest.mark.parametrize("key", [*tiny.VAE, "latents_mean", "latents_std", "decoder_base_dim"])
def test_vae_settings(case: Case, key: str) -> None:
    path = case.vae / "config.json"
    whole = path.read_text()
    try:
        for value in ODD:
            path.write_text(json.dumps({**json.loads(whole), key: value}))
            outcome(lambda: checkpoints.load_vae(case.vae), case.vae, (CheckpointError,))
    finally:
        path.write_text(whole)


@pytest.mark.parametrize("key", tiny.SCHEDULER)
def test_scheduler_settings(case: Case, key: str) -> None:
    folder = case.weights.base / "scheduler"
    path = folder / "scheduler_config.json"
    whole = path.read_text()
    config = json.loads(whole)
    without = {k: v for k, v in config.items() if k != key}
    try:
        for changed in (without, *({**config, key: value} for value in ODD)):
            path.write_text(json.dumps(changed))
            outcome(lambda: checkpoints.load_scheduler_config(folder), path, (CheckpointError,))
    finally:
        path.write_text(whole)


NO_JSON = [
    b"", b"{", b"[]", b"null", b"7", b'"text"', b"\xff\xfe{}", b"{}", b"{'a': 1}", b"[" * 100_000,
    b'{"a":' * 100_000, b'{"num_layers": ' + b"9" * 5000 + b"}", b"\0" * 100, pickle.dumps({}), b"{} {}",
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(NO_JSON)))
def test_configurations_that_are_none(case: Case, number: int) -> None:
    folder = case.weights.base
    for path, load_it in (
        (folder / "transformer/config.json", lambda: case.load("transformer")),
        (folder / "transformer/config.json", lambda: transformer_config(case.weights)),
        (folder / "scheduler/scheduler_config.json", lambda: checkpoints.load_scheduler_config(folder / "scheduler")),
        (folder / "vae/config.json", lambda: checkpoints.load_vae(case.vae)),
    ):
        whole = path.read_bytes()
        path.write_bytes(NO_JSON[number])
        try:
            line = outcome(load_it, folder, (CheckpointError,))
            assert line or NO_JSON[number] == b"{}"
        finally:
            path.write_bytes(whole)


def test_an_index_of_shards(case: Case) -> None:
    index = case.transformer / f"{WEIGHTS}.index.json"
    good = dict.fromkeys(load(case.whole["transformer"]), WEIGHTS)
    key = next(iter(good))
    maps: list[Any] = [*ODD, {**good, key: 3}, {**good, key: "gone.safetensors"}, {**good, key: "../config.json"}]
    try:
        for value in maps:
            index.write_text(json.dumps({"weight_map": value}))
            assert outcome(lambda: case.load("transformer"), case.transformer, (CheckpointError,)), value
        for content in NO_JSON:
            index.write_bytes(content)
            assert outcome(lambda: case.load("transformer"), index, (CheckpointError,)), content[:20]
        second = case.transformer / "second.safetensors"
        second.write_bytes(case.whole["transformer"])
        index.write_text(json.dumps({"weight_map": {**good, key: second.name}}))
        assert "fills the same" in (outcome(lambda: case.load("transformer"), second, (CheckpointError,)) or "")
        second.unlink()
    finally:
        index.unlink()


# What is no file


def _no_file(path: Path, kind: str) -> None:
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "dangling":
        path.symlink_to("nowhere")
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "pipe behind a link":
        os.mkfifo(path.with_name("pipe"))
        path.symlink_to("pipe")
    elif kind == "unreadable":
        path.write_bytes(b"secret")
        path.chmod(0)


NO_FILE = [
    "missing", "folder", "pipe", "loop", "dangling", "device", "pipe behind a link",
    pytest.param("unreadable", marks=pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")),
]  # fmt: skip


@pytest.mark.parametrize("kind", NO_FILE)
def test_what_is_no_file(case: Case, kind: str) -> None:
    paths = case.files | {
        "transformer config": case.transformer / "config.json",
        "vae config": case.vae / "config.json",
    }
    for name, path in paths.items():
        aside = path.with_name("aside")
        path.rename(aside)
        _no_file(path, kind)
        try:
            assert outcome(lambda name=name: case.load(name.partition(" ")[0]), path, (CheckpointError,)), name
            if name in ("resampler", "id"):
                assert outcome(lambda: weight_digests(case.weights), path, (CheckpointError,)), name
        finally:
            if path.is_dir():
                path.rmdir()
            else:
                path.unlink(missing_ok=True)
            path.with_name("pipe").unlink(missing_ok=True)
            aside.rename(path)


# Pickles


def _archive(value: Any) -> bytes:
    import io

    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_are_never_run(case: Case, protocol: int) -> None:
    hostile = [
        pickle.dumps(Bomb(), protocol),
        pickle.dumps({"input_layer.0.weight": Bomb()}, protocol),
        pickle.dumps([torch.zeros(2), Bomb()], protocol),
    ]
    if protocol == 2:
        hostile += [_archive(Bomb()), _archive({"input_layer.0.weight": Bomb()}), _archive({Bomb(): 1})]
    for content in hostile:
        for name in ALL:
            assert case.outcome(name, content), name


def test_a_pickle_in_place_of_missing_safetensors_is_not_looked_for(case: Case) -> None:
    for name in ("transformer", "vae"):
        path = case.files[name]
        path.rename(path.with_name("aside"))
        beside = path.with_name("diffusion_pytorch_model.bin")
        beside.write_bytes(_archive({"a": Bomb()}))
        try:
            assert outcome(lambda name=name: case.load(name), path, (CheckpointError,))
        finally:
            beside.unlink()
            path.with_name("aside").rename(path)


# Memory

LIMITED = """
from pathlib import Path
import torch
from lynx_parallel.errors import CheckpointError
from lynx_parallel.model import checkpoints
from lynx_parallel.subject.arcface import load_arcface
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
for path in map(Path, sys.argv[1:]):
    for load in (
        lambda: checkpoints.load_resampler(path, dtype=torch.float32), lambda: load_arcface(path, sha256=None)
    ):
        try:
            load()
        except CheckpointError as error:
            assert str(error).startswith(f"{path}: "), error
            assert len(str(error).splitlines()) == 1, error
        else:
            raise SystemExit(f"{path} was loaded")
print((peak() - before) // 1024)
"""


def test_lies_about_sizes_take_no_memory(case: Case, tmp_path: Path) -> None:
    header, body = split(case.whole["resampler"])
    for number, size in enumerate((10**8 - 1, 10**9, 2**40)):
        (tmp_path / f"length{number}.safetensors").write_bytes(join(header, body, size))
    for number, shape in enumerate(([2**40], [0, 2**60], [2**31, 2**31])):
        entry = {**header["latents"], "shape": shape}
        (tmp_path / f"shape{number}.safetensors").write_bytes(join({**header, "latents": entry}, body))
    for number, dimension in enumerate((10**7, 2**40)):
        tensors = {"latents": torch.zeros(1, 0, 3), "proj_in.weight": torch.zeros(0, dimension)}
        (tmp_path / f"empty{number}.safetensors").write_bytes(save(tensors))
    grown = int(limited(LIMITED, *sorted(tmp_path.glob("*.safetensors")), megabytes=8000))
    assert grown < 200
