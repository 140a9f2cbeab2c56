"""A bf16 copy of an fp32 base: it has the same values and digests, and an incomplete copy is never used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lynx_parallel.cli.load import load
from lynx_parallel.demo.faces import LANDMARKS
from lynx_parallel.errors import CheckpointError, ClusterError
from lynx_parallel.inputs.tensor_headers import INDEX
from lynx_parallel.inputs.weight_files import WeightFiles
from lynx_parallel.model import convert as converting
from lynx_parallel.model.checkpoints import load_transformer
from lynx_parallel.model.tensor_files import stored_as
from lynx_parallel.output.checksums import sha256_file
from lynx_parallel.pipeline import LynxPipeline
from lynx_parallel.plan.converted import convert, with_converted
from lynx_parallel.plan.hashing import weight_digests
from lynx_parallel.rank.converted import checked
from lynx_parallel.rank.messages import RankConfig
from lynx_parallel.rank.rank import Rank
from tests.helpers import campaigns as small
from tests.helpers.damage import flip
from tests.helpers.fork_server import fast_children
from tests.helpers.light_command import light
from tests.helpers.repository import REPOSITORY

FACES = REPOSITORY / "manifests" / "faces"
FILE = "diffusion_pytorch_model.safetensors"


def split(base: Path) -> None:
    """Stores the transformer in two files and an index, as large ones are."""
    folder = base / "transformer"
    tensors = load_file(folder / FILE)
    (folder / FILE).unlink()
    names = {key: f"part-{number % 2}.safetensors" for number, key in enumerate(sorted(tensors))}
    for name in set(names.values()):
        save_file({key: tensor for key, tensor in tensors.items() if names[key] == name}, folder / name)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": names}))


class Converted:
    """The demo's base in two fp32 files, converted to bf16 by the command.

    Attributes:
        weights: without the copy.
        digests: before the conversion.
        out: what the command printed.
    """

    def __init__(self, folder: Path, demo: Path):
        shutil.copytree(demo / "wan", folder / "wan")
        split(folder / "wan")
        adapters = [demo / "full" / f"{name}.safetensors" for name in ("resampler", "ip_layers", "ref_layers")]
        self.folder = folder
        self.weights = WeightFiles(folder / "wan", *adapters)
        self.digests = weight_digests(self.weights)
        self.out = self.fetch()

    def fetch(self) -> list[str]:
        names = {name: str(getattr(self.weights, name)) for name in ("resampler", "id", "ref")}
        model = {"base": "./wan", "adapters": names, "dtype": "bfloat16"}
        (self.folder / "p.yaml").write_text(json.dumps({"version": 1, "model": model}))
        done = light("fetch", self.folder / "p.yaml", "--convert", cwd=self.folder)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.splitlines()

    @property
    def copy(self) -> Path:
        found = with_converted(self.weights, self.digests, "bfloat16").converted
        assert found is not None
        return found


@pytest.fixture(scope="module", autouse=True)
def conversions_start_fast() -> Iterator[None]:
    with fast_children():
        yield


@pytest.fixture(scope="module")
def converted(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Converted:
    return Converted(tmp_path_factory.mktemp("converted"), demo)


def test_every_parameter_is_as_loaded_from_the_base(converted: Converted) -> None:
    assert {path.name for path in converted.copy.iterdir()} == {INDEX, "part-0.safetensors", "part-1.safetensors"}
    assert all(stored_as(path, torch.bfloat16) for path in converted.copy.glob("*.safetensors"))
    copied = with_converted(converted.weights, converted.digests, "bfloat16")
    plain, from_copy = (load_transformer(w, dtype=torch.bfloat16).state_dict() for w in (converted.weights, copied))
    assert plain.keys() == from_copy.keys()
    for key, tensor in plain.items():
        assert (tensor.dtype, from_copy[key].dtype) in [(torch.bfloat16,) * 2, (torch.float32,) * 2], key
        assert torch.equal(tensor, from_copy[key]), key
    # What diffusers keeps in fp32 is in fp32 in the file, not only after loading.
    files = [load_file(path) for path in converted.copy.glob("*.safetensors")]
    stored = {key: tensor.dtype for file in files for key, tensor in file.items()}
    assert {dtype for key, dtype in stored.items() if "scale_shift_table" in key} == {torch.float32}


def test_the_loader_reads_the_copy(converted: Converted, tmp_path: Path) -> None:
    shutil.copytree(converted.copy, tmp_path / "other")
    file = tmp_path / "other" / "part-0.safetensors"
    save_file({key: tensor + 1 for key, tensor in load_file(file).items()}, file)
    other = replace(converted.weights, converted=tmp_path / "other")
    loaded = (load_transformer(w, dtype=torch.bfloat16).state_dict() for w in (converted.weights, other))
    assert any(not torch.equal(one, two) for one, two in zip(*(state.values() for state in loaded), strict=True))


def test_a_render_is_the_same(converted: Converted) -> None:
    latents = []
    for weights in (converted.weights, with_converted(converted.weights, converted.digests, "bfloat16")):
        pipeline = LynxPipeline.from_files(weights, dtype=torch.bfloat16)
        output = pipeline(
            "on a beach", image=FACES / "astronaut.jpg", landmarks=LANDMARKS["astronaut"],
            embedding=FACES / "astronaut.safetensors", width=64, height=48, num_frames=5, num_inference_steps=2,
        )  # fmt: skip
        latents.append(output.latents)
    assert torch.equal(*latents)
    assert latents[0].abs().max() > 0


def test_what_was_done_stays_done(converted: Converted, tmp_path: Path) -> None:
    manifest = small.write(tmp_path)
    shutil.copy(converted.folder / "p.yaml", tmp_path / "full.yaml")
    (tmp_path / "wan").symlink_to(converted.folder / "wan")
    small.draw(tmp_path)
    loaded = load(str(manifest), None, None, False)
    assert loaded.parts[0].weights.converted == converted.copy
    assert loaded.parts[0].digests == converted.digests
    for shot in loaded.campaign.shots:
        small.finish(loaded.campaign, shot, weights=converted.digests)  # those before there was a copy
    assert {item.action for item in loaded.replan().items} == {"done"}


def test_a_machine_without_the_copy_reads_the_base(converted: Converted, tmp_path: Path) -> None:
    away = replace(converted.weights, converted=tmp_path / "not here")
    base, other = (load_transformer(w, dtype=torch.bfloat16).state_dict() for w in (converted.weights, away))
    assert all(torch.equal(base[key], other[key]) for key in base)


def test_again_does_nothing(converted: Converted) -> None:
    before = small.tree(converted.copy.parent)
    out = converted.fetch()
    assert small.tree(converted.copy.parent) == before
    assert [line.split()[0] for line in out] == ["base", "converted", "resampler", "id", "ref"]
    assert [line.split()[0] for line in converted.out] == ["storing", *(line.split()[0] for line in out)]


def test_a_base_of_the_pipelines_type_is_left_alone(converted: Converted) -> None:
    said: list[tuple[int, int]] = []
    weights = convert(converted.weights, converted.digests, "float32", lambda *numbers: said.append(numbers))
    assert (weights, said) == (converted.weights, [(0, 0)])


def test_a_damaged_copy_is_ignored(converted: Converted, tmp_path: Path) -> None:
    root = converted.copy.parent
    kept = tmp_path / "kept"
    shutil.copytree(root, kept)

    def used() -> bool:
        return with_converted(converted.weights, converted.digests, "bfloat16").converted is not None

    file = root / "transformer" / "part-1.safetensors"
    content = file.read_bytes()
    for damage in (
        lambda: file.unlink(),
        lambda: file.write_bytes(content[:-1]),
        lambda: file.write_bytes(content[:-1] + bytes([content[-1] ^ 1])),  # the same size
        lambda: (root / "converted.json").unlink(),
        lambda: (root / "converted.json").write_text("{"),
        lambda: (root / "converted.json").write_text('{"files": {}}'),
    ):
        assert used()
        damage()
        assert not used()
        shutil.rmtree(root)
        shutil.copytree(kept, root)
    # A copy of other files, or of another type, has another name.
    changed = {**converted.digests, "base/transformer/part-0.safetensors": "0" * 64}
    assert with_converted(converted.weights, changed, "bfloat16").converted is None
    assert with_converted(converted.weights, converted.digests, "float16").converted is None


def test_an_interrupted_conversion_is_continued(converted: Converted, tmp_path: Path) -> None:

    source, target = converted.weights.base / "transformer", tmp_path / "transformer"
    steps = converting.convert(source, target, torch.bfloat16)
    while not (target / "part-0.safetensors").exists():
        next(steps)
    steps.close()  # type: ignore[attr-defined]
    inode = (target / "part-0.safetensors").stat().st_ino
    assert not (target / "part-1.safetensors").exists()
    numbers = list(converting.convert(source, target, torch.bfloat16))
    assert numbers[0] == numbers[-1] > 0
    assert (target / "part-0.safetensors").stat().st_ino == inode
    assert {path.name: sha256_file(path) for path in target.iterdir()} == {
        path.name: sha256_file(path) for path in converted.copy.iterdir()
    }


def test_a_base_that_cannot_be_read(converted: Converted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(converted.folder / "wan", tmp_path / "wan")
    weights = replace(converted.weights, base=tmp_path / "wan")
    monkeypatch.setenv("LYNX_CACHE", str(tmp_path / "cache"))
    (tmp_path / "wan" / "transformer" / "part-1.safetensors").write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match=r"converting to bfloat16 failed: .*part-1.safetensors: not a readable"):
        convert(weights, converted.digests, "bfloat16", lambda *_: None)


def test_a_place_that_cannot_be_written(
    converted: Converted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "converted").write_text("not a folder")
    target = tmp_path / "converted" / "transformer"
    with pytest.raises(SystemExit, match=str(ClusterError.exit_code)):
        converting.main([str(converted.weights.base / "transformer"), str(target), "bfloat16"])
    assert capsys.readouterr().err == f"{target}: cannot be written: Not a directory\n"


def test_a_bit_that_changed_at_rest(converted: Converted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Size and mtime are as they were: the ranks read the copy whole before they use it."""
    original = converted.copy.parent
    monkeypatch.setenv("LYNX_CACHE", str(tmp_path / "cache"))
    root = Path(shutil.copytree(original, tmp_path / "cache" / "converted" / original.name))
    with_copy = with_converted(converted.weights, converted.digests, "bfloat16")
    assert with_copy.converted == root / "transformer"
    assert checked(with_copy) == (with_copy, "")
    file = root / "transformer" / "part-1.safetensors"
    flip(file, 8 * file.stat().st_size - 3)
    assert with_converted(converted.weights, converted.digests, "bfloat16") == with_copy  # its size and mtime are known
    weights, line = checked(with_copy)
    aside = root.parent / "damaged" / root.name
    assert weights == converted.weights
    assert line.startswith(f"{file}: damaged; the copy was moved to {aside}. The published files are read instead.")
    assert "\n" not in line
    assert (aside / "transformer" / "part-1.safetensors").exists()
    assert with_converted(converted.weights, converted.digests, "bfloat16").converted is None
    assert checked(with_copy) == (with_copy, "")  # another rank: there is nothing to read, so it reads the base
    assert checked(weights) == (weights, "")
    converted.fetch()
    assert with_converted(converted.weights, converted.digests, "bfloat16") == with_copy
    (root / "converted.json").write_text("{")
    assert checked(with_copy)[0] == weights


def test_a_rank_does_not_use_a_damaged_copy(
    converted: Converted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(converted.copy.parent, tmp_path / "copy")
    file = tmp_path / "copy" / "transformer" / "part-0.safetensors"
    flip(file, 8 * file.stat().st_size - 3)
    weights = replace(converted.weights, converted=tmp_path / "copy" / "transformer")
    built: list[WeightFiles] = []
    monkeypatch.setattr(Rank, "_build", lambda rank, group: built.append(rank.config.weights))
    rank = Rank("cpu", 1, RankConfig(weights, "bfloat16", denoise=True))
    rank.load()
    assert built == [converted.weights]
    assert [line for line in rank._warnings if "part-0.safetensors: damaged" in line]
