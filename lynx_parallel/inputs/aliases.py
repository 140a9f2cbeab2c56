"""Names of settings in other programs, for suggestions in error messages. They are not accepted as settings."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from functools import cache
from typing import NamedTuple

from lynx_parallel.inputs.problems import listing, nearest


class Alias(NamedTuple):
    """A name in another program.

    Attributes:
        key: the key here, with its section; empty if there is no such setting.
        note: a sentence for the user, if the meaning differs.
    """

    key: str
    note: str = ""


_WINDOW = "It takes both fractions: [start, end]."
_SIZE = "Give the width and the height."
_TAKES = "Every take is a video of its own."

ALIASES = {
    # ComfyUI (KSampler, WanVideoSampler, WanVideoAddLynxEmbeds, Video Combine)
    "steps": Alias("sampling.num_inference_steps"),
    "cfg": Alias("sampling.guidance_scale"),
    "lynx_cfg_scale": Alias("sampling.guidance_scale_i"),
    "shift": Alias("sampling.flow_shift"),
    "start_percent": Alias("sampling.identity_window", _WINDOW),
    "end_percent": Alias("sampling.identity_window", _WINDOW),
    "ref_blocks_to_use": Alias("sampling.ref_blocks"),
    "sampler": Alias("sampling.scheduler"),
    "sampler_name": Alias("sampling.scheduler"),
    "noise_seed": Alias("sampling.seed"),
    "length": Alias("sampling.num_frames"),
    "frames": Alias("sampling.num_frames"),
    "frame_rate": Alias("sampling.fps"),
    "negative": Alias("sampling.negative_prompt"),
    "positive": Alias("prompts"),
    "batch_size": Alias("shots", f"Use 'takes' in an entry of shots. {_TAKES}"),
    "ref_image": Alias("subjects", "Give the picture as 'image' of a subject."),
    "denoise": Alias("", "Every shot starts from noise; there is no video to start from."),
    "pix_fmt": Alias("", "This cannot be set: every video is yuv420p, which plays everywhere."),
    # diffusers
    "inference_steps": Alias("sampling.num_inference_steps"),
    "num_steps": Alias("sampling.num_inference_steps"),
    "cfg_scale": Alias("sampling.guidance_scale"),
    "image_guidance_scale": Alias("sampling.guidance_scale_i"),
    "generator": Alias("sampling.seed", "Give the seed's number."),
    "num_videos_per_prompt": Alias("shots", f"Use 'takes' in an entry of shots. {_TAKES}"),
    "torch_dtype": Alias("model.dtype"),
    "pretrained_model_name_or_path": Alias("model.base"),
    "lora": Alias("model.loras", "It is a list of files, or of mappings with file and weight."),
    "strength": Alias("model.loras", "Give the weight of a LoRA as 'weight'."),
    "quantization": Alias("", "Quantised weights are not supported."),
    # Lynx and Wan
    "sample_steps": Alias("sampling.num_inference_steps"),
    "sample_guide_scale": Alias("sampling.guidance_scale"),
    "sample_shift": Alias("sampling.flow_shift"),
    "sample_solver": Alias("sampling.scheduler"),
    "base_seed": Alias("sampling.seed"),
    "frame_num": Alias("sampling.num_frames"),
    "n_prompt": Alias("sampling.negative_prompt"),
    "size": Alias("sampling.width", _SIZE),
    "resolution": Alias("sampling.width", _SIZE),
    "ref_size": Alias("sampling.reference_size"),
    "subject_image": Alias("subjects", "Give the picture as 'image' of a subject."),
    "face_embeds": Alias("subjects", "Give the vector as 'embedding' of a subject."),
    "ip_layers": Alias("model.adapters.id"),
    "ref_layers": Alias("model.adapters.ref"),
    # ffmpeg
    "vcodec": Alias("video.codec"),
    "format": Alias("video.container"),
}


def suggest(name: str, known: Iterable[str], what: str = "allowed") -> str:
    """Returns ``did you mean …? (allowed: …)`` for an unknown key, as ``nearest``.

    It also knows names of other programs, and settings that belong to another section.

    Args:
        known: the keys that are allowed in this place, with or without their section.
    """
    keys = list(known)
    near, listed = nearest(name, keys, what), listing(keys, what)
    leaf = name.casefold().replace("-", "_").rpartition(".")[2]
    alias = ALIASES.get(leaf)
    if alias is None and leaf in _homes():
        alias = Alias(_homes()[leaf])
    if alias is None and near == listed and (close := difflib.get_close_matches(leaf[:200], _homes(), n=1)):
        alias = Alias(_homes()[close[0]])
    if alias is None:
        return near
    note = f"{alias.note} " if alias.note else ""
    if not alias.key:
        return f"{note}({listed})"
    section, _, ours = alias.key.rpartition(".")
    meant = ours if ours in keys else alias.key
    elsewhere = meant not in keys and section.partition(".")[0] in {"model", "face", "video"} - {*keys}
    where = " in the pipeline file" if elsewhere else ""
    return f"did you mean {meant!r}{where}? {note}({listed})"


@cache
def _homes() -> dict[str, str]:
    """Returns each setting's key with its section, by its name alone."""
    from pydantic import BaseModel

    from lynx_parallel.inputs.pipeline import FaceSpec, ModelSpec, Video
    from lynx_parallel.inputs.sampling import Sampling

    sections: dict[str, type[BaseModel]] = {"model": ModelSpec, "face": FaceSpec, "video": Video, "sampling": Sampling}
    return {name: f"{section}.{name}" for section, model in sections.items() for name in model.model_fields}
