"""LoRAs and single files as a user meets them: what plan reports, what it refuses, and what changes a digest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lynx_parallel.inputs.shipped import shipped_names
from tests.helpers.campaigns import FULL, draw, write
from tests.helpers.light_command import errors_of, light, refused
from tests.helpers.lora_files import LAYOUTS, make_known, whole_file
from tests.helpers.lora_files import write as write_lora
from tests.helpers.packagings import PACKAGINGS
from tests.helpers.packagings import write as write_single

MODEL = "  dtype: float32\n"


@pytest.fixture
def base(demo: Path) -> dict[str, torch.Tensor]:
    return load_file(demo / "wan" / "transformer" / "diffusion_pytorch_model.safetensors")


@pytest.fixture
def folder(tmp_path: Path, base: dict[str, torch.Tensor]) -> Path:
    write(tmp_path)
    draw(tmp_path)
    write_lora(tmp_path / "style.safetensors", whole_file(make_known(base, whole=True)))
    return tmp_path


def with_model(folder: Path, text: str) -> None:
    assert FULL.count(MODEL) == 1
    (folder / "full.yaml").write_text(FULL.replace(MODEL, f"{MODEL}{text}"))


def plan(folder: Path, *options: str) -> Any:
    run = light("plan", "m.yaml", "--json", *options, cwd=folder)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_plan_says_what_a_lora_changes(folder: Path, base: dict[str, torch.Tensor]) -> None:
    with_model(folder, "  loras: [./style.safetensors, {file: ./style.safetensors, weight: 0.5}]\n")
    run = light("plan", "m.yaml", cwd=folder)
    assert run.returncode == 0, run.stderr
    keys = len(whole_file(make_known(base, whole=True)))
    lines = [line for line in run.stdout.splitlines() if line.startswith("LoRA ")]
    assert [line.partition(":")[0] for line in lines] == [
        "LoRA style.safetensors, weight 1", "LoRA style.safetensors, weight 0.5"
    ]  # fmt: skip
    assert all(line.partition(": ")[2].startswith(f"{keys} of {keys} keys change ") for line in lines)


def test_a_part_that_is_not_applied_is_a_warning(folder: Path, base: dict[str, torch.Tensor]) -> None:
    state = LAYOUTS["ComfyUI"](make_known(base))
    state["diffusion_model.blocks.0.cross_attn.k_img.lora_down.weight"] = torch.ones(3, 8)
    state["diffusion_model.blocks.0.cross_attn.k_img.lora_up.weight"] = torch.ones(8, 3)
    write_lora(folder / "style.safetensors", state)
    with_model(folder, "  loras: [./style.safetensors]\n")
    [warning] = plan(folder)["warnings"]
    assert warning["kind"] == "lora-skipped"
    assert "style.safetensors: 2 keys: this base has no such part: diffusion_model.blocks.0.cross_attn.k_img" in (
        json.dumps(warning)
    )


def test_a_lora_that_cannot_be_used_is_one_line_before_any_work(folder: Path) -> None:
    key = "diffusion_model.blocks.0.self_attn.q"
    pair = {f"{key}.lora_down.weight": torch.ones(4, 1536), f"{key}.lora_up.weight": torch.ones(1536, 4)}
    write_lora(folder / "style.safetensors", pair)
    with_model(folder, "  loras: [./style.safetensors]\n")
    for command in ("plan", "render"):
        [line] = errors_of(light(command, "m.yaml", cwd=folder))
        assert f"style.safetensors: {key}.lora_up.weight: shape [1536, 4], expected a change of" in line
        assert line.endswith("was this LoRA made for another base?")
    with_model(folder, "  loras: [./missing.safetensors]\n")
    [line] = refused("plan", "m.yaml", cwd=folder)
    assert "full.yaml:6: model.loras[0]: './missing.safetensors': missing file" in line
    with_model(folder, "  loras: [demo:full]\n")
    [line] = refused("plan", "m.yaml", cwd=folder)
    assert line.endswith("'demo:full': must be a .safetensors file or hub:org/repo/path/in/repo")


@pytest.mark.parametrize("pipeline", shipped_names("pipelines"))
def test_plan_of_a_pipeline_that_is_not_on_this_machine(folder: Path, pipeline: str) -> None:
    manifest = (folder / "m.yaml").read_text().replace("pipeline: ./full.yaml", f"pipeline: {pipeline}")
    (folder / "m.yaml").write_text(manifest)
    run = light("plan", "m.yaml", cwd=folder)
    assert run.returncode == 0, run.stderr
    missing = [line for line in run.stdout.splitlines() if line.startswith("missing ")]
    assert bool(missing) == (pipeline != "demo-tiny")
    assert any("lora" in line for line in missing) == ("fewstep" in pipeline)


def digests(folder: Path) -> str:
    """What plan would render; the digest shows in the name of nothing, so the settings of a shot are compared."""
    from lynx_parallel.cli.load import load

    loaded = load(str(folder / "m.yaml"), None, None, False, download=False)
    [digest, *_] = [item.digests.latents for item in loaded.replan().items]
    return digest


def test_file_weight_order_and_reference_count(folder: Path, base: dict[str, torch.Tensor]) -> None:
    write_lora(folder / "other.safetensors", LAYOUTS["musubi"](make_known(base, seed=1)))
    made = {}
    for text in (
        "",
        "  loras: [./style.safetensors]\n",
        "  loras: [{file: ./style.safetensors, weight: 0.5}]\n",
        "  loras: [./style.safetensors, ./other.safetensors]\n",
        "  loras: [./other.safetensors, ./style.safetensors]\n",
        "  loras: [./style.safetensors]\n  loras_on_reference: false\n",
    ):
        with_model(folder, text)
        made[text] = digests(folder)
    assert len(set(made.values())) == len(made)
    with_model(folder, "  loras: []\n  loras_on_reference: false\n")
    assert digests(folder) == made[""]  # without a LoRA there is nothing to leave out


def test_a_single_file_counts_by_content(folder: Path, base: dict[str, torch.Tensor]) -> None:
    plain = digests(folder)
    made = set()
    for name in ("fp16", "fp8 scaled, Kijai"):
        write_single(folder / "model.safetensors", PACKAGINGS[name](base)[0])
        with_model(folder, "  transformer: ./model.safetensors\n")
        made.add(digests(folder))
    assert len(made | {plain}) == 3
