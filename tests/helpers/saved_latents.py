"""Finished shots with latents that the demo's VAE decodes, without a render."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from lynx_parallel.inputs.manifest import Campaign, Shot
from lynx_parallel.model.checkpoints import load_vae
from lynx_parallel.output.atomic import part_path
from lynx_parallel.output.checksums import add_checksum, sha256_file
from lynx_parallel.output.finished_latents import latents_metadata
from lynx_parallel.output.folder import Output
from lynx_parallel.plan.digests import shot_digests
from lynx_parallel.stages.latents import decode, latent_shape, to_frames
from lynx_parallel.stages.video import encode_video
from tests.helpers.campaigns import sidecar
from tests.helpers.finished import ids_of


def finish_with_latents(campaign: Campaign, shot: Shot, vae: Path, seed: int, **more: Any) -> np.ndarray:
    """Finishes a shot of the demo's model with random latents, as a render would. Returns its frames.

    Args:
        vae: folder of the VAE.
        more: further keys of the sidecar.
    """
    settings = shot.sampling
    shape = latent_shape(settings.width, settings.height, settings.num_frames)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    frames = to_frames(decode(load_vae(vae), latents))
    output = Output(campaign.output)
    parts = {kind: part_path(output.path(shot.name, kind)) for kind in ("latents", "video")}
    parts["video"].parent.mkdir(parents=True, exist_ok=True)
    parts["latents"].write_bytes(add_checksum(save({"latents": latents}), latents_metadata("0" * 64, None)))
    encode_video(frames, parts["video"], fps=settings.fps, codec="h264", crf=18)
    weights = {f"base/vae/{file.name}": sha256_file(file) for file in vae.iterdir()}
    made = sidecar(shot_digests(campaign, shot, weights), {kind: part.read_bytes() for kind, part in parts.items()})
    model = campaign.pipeline.model.model_dump()
    whole = {**made, "name": shot.name, "shot": ids_of(shot), "model": model, "exactness": {}, **more}
    output.commit(shot.name, ("latents", "video"), whole)
    return frames
