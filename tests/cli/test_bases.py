"""Bases with two experts, or with a first frame, as a user meets them: what plan refuses, and what changes a digest."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import load_file

from lynx_parallel.demo import tiny
from tests.helpers.campaigns import FULL, draw, write
from tests.helpers.light_command import light, refused
from tests.helpers.lora_files import make_known, whole_file
from tests.helpers.lora_files import write as write_lora
from tests.helpers.tiny_bases import Kind, write_base, write_transformer

REF_ONLY = FULL.replace("resampler: demo:lite, id: demo:full, ref", "ref")
A14B = ("T2V-A14B", "I2V-A14B")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path)
    draw(tmp_path)
    Image.new("RGB", (100, 60), (200, 100, 50)).save(tmp_path / "start.png")
    return tmp_path


def use(folder: Path, demo: Path, kind: Kind, text: str = FULL, model: str = "") -> None:
    if not (folder / kind).exists():
        write_base(folder / kind, demo, kind)
    (folder / "full.yaml").write_text(
        text.replace("base: demo:tiny", f"base: ./{kind}").replace("  dtype: float32\n", f"  dtype: float32\n{model}")
    )


def give_start(folder: Path) -> None:
    text = (folder / "m.yaml").read_text().replace("walk: 'A {person} walks.'", WITH_START)
    (folder / "m.yaml").write_text(
        text.replace("    image: bob.jpg\n", "    image: bob.jpg\n    start_image: start.png\n")
    )


WITH_START = "walk: {text: 'A {person} walks.', start_image: start.png}"


def latents_digests(folder: Path) -> list[str]:
    from lynx_parallel.cli.load import load

    loaded = load(str(folder / "m.yaml"), None, None, False, download=False)
    return [item.digests.latents for item in loaded.replan().items]


def settings(folder: Path) -> dict[str, Any]:
    from lynx_parallel.cli.load import load

    loaded = load(str(folder / "m.yaml"), None, None, False, download=False)
    return loaded.replan().items[0].digests.settings


def test_what_counts_for_two_experts(folder: Path, demo: Path) -> None:
    """Each of these changes the digests: the boundary, either expert, what acts on which, and the second guidance."""
    state = whole_file(make_known(load_file(demo / "wan/transformer/diffusion_pytorch_model.safetensors")))
    write_lora(folder / "style.safetensors", state)
    use(folder, demo, "T2V-A14B")
    assert settings(folder)["weights.base/boundary_ratio"] == "0.875"
    made = [latents_digests(folder)]
    for model in (
        "  loras: [./style.safetensors]\n",
        "  loras: [{file: ./style.safetensors, expert: high_noise}]\n",
        "  loras: [{file: ./style.safetensors, expert: low_noise}]\n",
        "  adapters_expert: low_noise\n",
        "  transformer_2: ./T2V-A14B/transformer/diffusion_pytorch_model.safetensors\n",
    ):
        use(folder, demo, "T2V-A14B", model=model)
        made.append(latents_digests(folder))
    use(
        folder,
        demo,
        "T2V-A14B",
        FULL.replace("guidance_scale_i: null", "guidance_scale_i: null, guidance_scale_2: 3.0"),
    )
    made.append(latents_digests(folder))
    use(folder, demo, "T2V-A14B")
    for part in ("model_index.json", "transformer_2/config.json"):
        path = folder / "T2V-A14B" / part
        path.write_text(path.read_text().replace("0.875", "0.9") + "\n")
        made.append(latents_digests(folder))
    shutil.copy(folder / "T2V-A14B/transformer/diffusion_pytorch_model.safetensors", folder / "T2V-A14B/transformer_2")
    made.append(latents_digests(folder))
    assert len({json.dumps(one) for one in made}) == len(made) == 10


def test_settings_of_two_experts_on_a_base_with_one(folder: Path, demo: Path) -> None:
    state = whole_file(make_known(load_file(demo / "wan/transformer/diffusion_pytorch_model.safetensors")))
    write_lora(folder / "style.safetensors", state)
    model = (
        "  adapters_expert: high_noise\n  transformer_2: ./style.safetensors\n"
        "  loras: [{file: ./style.safetensors, expert: low_noise}]\n"
    )
    text = FULL.replace("guidance_scale_i: null", "guidance_scale_i: null, guidance_scale_2: 3.0, boundary_ratio: 0.9")
    use(folder, demo, "T2V", text, model)
    lines = refused("plan", "m.yaml", cwd=folder)
    names = ["model.transformer_2", "model.adapters_expert", "model.loras[0].expert", "sampling.guidance_scale_2",
             "sampling.boundary_ratio"]  # fmt: skip
    assert [line.partition(":")[0] for line in lines] == names
    wanted = f"is for a base with two experts (Wan2.2 A14B), {folder}/T2V has one transformer"
    assert all(wanted in line for line in lines)


@pytest.mark.parametrize(("kind", "text"), [("I2V", REF_ONLY), ("I2V-A14B", FULL)])
def test_a_first_frame_for_every_shot(folder: Path, demo: Path, kind: Kind, text: str) -> None:
    use(folder, demo, kind, text)
    (line,) = refused("plan", "m.yaml", cwd=folder)
    assert line.startswith(f"start_image: missing: {folder}/{kind} begins every video with a picture: give one to each")
    give_start(folder)
    (line,) = refused("plan", "m.yaml", cwd=folder)  # ada runs without one
    assert line.endswith("(ada/run-t01)")
    table = "subject,prompt,start_image\nada,run,start.png\nbob,run,\n*,walk,other.png\n"
    (folder / "shots.csv").write_text(table)
    with (folder / "m.yaml").open("a") as manifest:
        manifest.write("shots: {from: shots.csv}\n")
    Image.new("RGB", (100, 60), (1, 2, 3)).save(folder / "other.png")
    made = latents_digests(folder)
    assert len(set(made)) == 4
    Image.new("RGB", (100, 60), (3, 2, 1)).save(folder / "other.png")
    again = latents_digests(folder)
    assert len(set(made) & set(again)) == 2  # those of other.png have changed
    (folder / "other.png").write_bytes(b"no picture")
    run = light("plan", "m.yaml", cwd=folder)
    assert run.returncode == 0
    assert re.search(r"2 blocked", run.stdout)
    assert "other.png" in run.stdout + run.stderr
    (folder / "other.png").unlink()
    lines = refused("plan", "m.yaml", cwd=folder)
    assert lines == [f"{folder}/shots.csv:4: column start_image: 'other.png': missing file"] or lines == [
        "shots.csv:4: column start_image: 'other.png': missing file"
    ]


def test_a_picture_of_another_shape_is_a_warning(folder: Path, demo: Path) -> None:
    """The videos are 64 x 48."""
    use(folder, demo, "I2V-A14B")
    give_start(folder)
    text = (folder / "m.yaml").read_text()
    (folder / "m.yaml").write_text(text.replace("run: 'A {person} runs.'", "run: {text: Runs, start_image: start.png}"))
    for size, lost in (((64, 48), None), ((100, 70), None), ((48, 64), "44% of its height is lost at 64x48"),
                       ((200, 48), "68% of its width is lost at 64x48")):  # fmt: skip
        Image.new("RGB", size).save(folder / "start.png")
        run = light("plan", "m.yaml", "--json", cwd=folder)
        assert run.returncode == 0, run.stderr
        assert (f"start.png: {lost}" in run.stdout) == (lost is not None)
        assert ("start-image-cut" in run.stdout) == (lost is not None)


def test_a_first_frame_for_a_base_that_takes_none(folder: Path, demo: Path) -> None:
    use(folder, demo, "T2V")
    give_start(folder)
    (line,) = refused("plan", "m.yaml", cwd=folder)
    assert line.startswith("start_image: start.png: ")
    assert f"{folder}/T2V takes no picture: use an I2V base" in line


def test_an_id_adapter_beside_the_embedding_of_the_first_frame(folder: Path, demo: Path) -> None:
    use(folder, demo, "I2V")
    give_start(folder)
    lines = refused("plan", "m.yaml", cwd=folder)
    assert any("takes no ID adapter, because it sees the first frame's embedding instead" in line for line in lines)


def test_adapters_of_another_width(folder: Path, demo: Path) -> None:
    """As Wan2.1 T2V 1.3B with the adapters of the 14B."""
    use(folder, demo, "T2V")
    shutil.rmtree(folder / "T2V" / "transformer")
    write_transformer(folder / "T2V" / "transformer", {**tiny.TRANSFORMER, "num_attention_heads": 2})
    (line,) = refused("plan", "m.yaml", cwd=folder)
    assert line.startswith("model.adapters: id (")
    assert ", ref (" in line
    assert f"made for a model of width 96, {folder}/T2V has 48: Lynx's published adapters fit 14B bases only" in line
