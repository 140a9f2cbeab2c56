"""A contact sheet: frames of one shot per pipeline, side by side, for people to look at.

    python -m benchmarks.contact_sheet

Renders one face and one prompt with each shipped pipeline whose weights and face models are installed, and writes
results/contact_sheet_<card>.png: a row per pipeline, its frames evenly spaced. Nothing is downloaded. Few frames and
few steps keep the time short. Exits 3 if no pipeline can be rendered.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from benchmarks.gpu_files import stay_offline
from benchmarks.gpu_model import attention_kernel
from benchmarks.gpu_report import describe_gpu, slug
from benchmarks.machine import RESULTS
from lynx_parallel.errors import CheckpointError
from lynx_parallel.inputs.manifest import Campaign
from lynx_parallel.inputs.shipped import shipped_dir
from lynx_parallel.parallel.apply import localize
from lynx_parallel.pipeline import LynxPipeline

PIPELINES = ("lynx-full", "lynx-lite-id-full-ref", "lynx-lite")
PROMPT = "A woman walks along a beach at sunrise, the wind in the hair."
CAPTION_PX, TILE_PX = 18, 240


def sheet(rows: Mapping[str, np.ndarray], columns: int) -> Image.Image:
    """Returns the picture of all rows.

    Args:
        rows: uint8 frames [F, H, W, 3] by caption.
        columns: frames of each row, from the first to the last.
    """
    strips = []
    for caption, frames in rows.items():
        height, width = frames.shape[1:3]
        tile = (TILE_PX, round(TILE_PX * height / width))
        strip = Image.new("RGB", (columns * tile[0], CAPTION_PX + tile[1]), "white")
        ImageDraw.Draw(strip).text((4, 3), caption, fill="black")
        for column, number in enumerate(np.linspace(0, len(frames) - 1, columns).round().astype(int)):
            strip.paste(Image.fromarray(frames[number]).resize(tile), (column * tile[0], CAPTION_PX))
        strips.append(strip)
    whole = Image.new("RGB", (columns * TILE_PX, sum(strip.height for strip in strips)), "white")
    top = 0
    for strip in strips:
        whole.paste(strip, (0, top))
        top += strip.height
    return whole


def campaign_of(folder: Path, name: str, sampling: Mapping[str, int]) -> Campaign:
    """Returns a campaign of one shot with a shipped pipeline; landmarks and embedding are left to its face models."""
    from lynx_parallel.inputs.load import load_campaign

    manifest = {
        "version": 1,
        "pipeline": name,
        "output": str(folder),
        "sampling": dict(sampling),
        "subjects": {"astronaut": {"image": str(shipped_dir("manifests") / "faces" / "astronaut.jpg")}},
        "prompts": {"beach": PROMPT},
    }
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(manifest))
    return load_campaign(path)


def render(campaign: Campaign, device: torch.device) -> np.ndarray:
    """Returns the frames of the campaign's only shot.

    Raises:
        CheckpointError: weights or face models are not installed.
    """
    from lynx_parallel.plan.weights import find_face_models, find_weights

    model, (shot,) = campaign.pipeline.model, campaign.shots
    weights, faces = find_weights(model), find_face_models(campaign.pipeline.face)
    dtype = getattr(torch, model.dtype)
    pipeline = LynxPipeline.from_files(weights, faces, dtype=dtype, device=device, keep_projections=False)
    localize(pipeline, attention_kernel("auto", device, dtype)[1])
    return pipeline(shot.text, image=shot.subject.image, **shot.sampling.model_dump()).frames


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipelines", nargs="+", default=PIPELINES, metavar="NAME")
    parser.add_argument("--frames", type=int, default=33, help="of the video, 4k+1")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--columns", type=int, default=6, help="frames shown of each video")
    parser.add_argument("--out", type=Path, help="default: results/contact_sheet_<card>.png")
    options = parser.parse_args()
    stay_offline()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.pipelines:
            sampling = {"num_frames": options.frames, "num_inference_steps": options.steps}
            try:
                frames = render(campaign_of(Path(folder), name, sampling), device)
            except CheckpointError as error:
                print(f"{name}: left out: {error}", file=sys.stderr)
                continue
            rows[f"{name}: {frames.shape[2]}x{frames.shape[1]}, {len(frames)} frames, {options.steps} steps"] = frames
            torch.cuda.empty_cache()
    if not rows:
        print("no contact sheet: no pipeline's weights and face models are installed", file=sys.stderr)
        sys.exit(3)
    out = options.out or RESULTS / f"contact_sheet_{slug(describe_gpu())}.png"
    sheet(rows, options.columns).save(out)
    print(out)


if __name__ == "__main__":
    main()
