"""Lynx from a prompt and a face to a video: tokens, reference features, guidance, and the whole of it.

Shapes are as in `wan.py`; M is a channel of the resampler, Q its queries (16). All of it runs in fp32 on the
CPU. The text encoder and the VAE are taken from their libraries, for Lynx leaves them as they are.
"""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import ftfy
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPVisionModel, UMT5EncoderModel

from tests.upstream import sampler
from tests.upstream.wan import Identity, Wan, Weights, attend, forward, layer_norm, linear, load_wan, scope

REFERENCE_TEXT = "image of a face"
REFERENCE_TIMESTEP = 0
TEXT_TOKENS = 512
RESAMPLER_HEAD_DIM = 64
RESAMPLER_EPS = 1e-5


@dataclass(frozen=True)
class Adapters:
    """The three files. `id_layers` and `ref_layers` by block; a lite ID-adapter is in every second block."""

    resampler: Weights
    id_layers: dict[int, Weights]
    ref_layers: dict[int, Weights]


@torch.no_grad()
def generate(
    base: Path,
    adapters: dict[str, Path],
    *,
    prompt: str,
    negative_prompt: str,
    seed: int,
    width: int,
    height: int,
    num_frames: int,
    num_inference_steps: int,
    guidance_scale: float,
    guidance_scale_i: float | None,
    ip_scale: float,
    ref_scale: float | None,
    face_embedding: Tensor,
    face_crop: np.ndarray,
    guidance_scale_2: float | None = None,
    boundary_ratio: float | None = None,
    adapters_expert: str | None = None,
    start_image: np.ndarray | None = None,
    reference_latent: str = "sample",
    sigma_schedule: str = "lynx",
    flow_shift: float = 3.0,
    decode: bool = True,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """The whole generation, and what it went through on the way.

    base: a Wan2.1-T2V folder in diffusers layout.
    adapters: files in the reference layout: `resampler`, `ip_layers`, and, unless lite, `ref_layers`.
    guidance_scale_i: None guides by two branches; guidance_scale ≤ 1 leaves one. Lynx lite is run with None.
    ref_scale: None where there are no `ref_layers`.
    face_embedding: [512], L2-normalised.
    face_crop: [256, 256, 3], uint8 RGB. Unused without `ref_layers`.
    guidance_scale_2, boundary_ratio: of a base with two experts: the first denoises from timestep
        1000 · boundary_ratio on, the second below it, guided by guidance_scale_2.
    adapters_expert: `high_noise` or `low_noise`: the only one with adapters.
    start_image: the first frame, uint8 RGB [height, width, 3], of a base that begins with one.
    reference_latent: `sample` draws from the VAE's posterior with seed + 1; `mode` takes its mode.
    sigma_schedule: `lynx` or `diffusers`.
    dtype: of the text encoder, the transformer and the adapters; VAE and sampler stay in fp32.

    Returns, with d for whatever the files say:
        id_tokens, id_tokens_uncond                 [1, 16, d]
        ref_features.{i}, ref_features_uncond.{i}   [1, 256, D], for every block i; not in lite
        prompt_embeds, negative_prompt_embeds       [1, 512, d]
        initial_latents, final_latents              [1, 16, T, Y, X]
        sigmas, timesteps                           [steps + 1], [steps]
        noise_cond, noise_uncond, noise_image_only  [1, 16, T, Y, X], first step, of what branches there are
        decoded_video                               [1, 3, frames, height, width] in [-1, 1], if `decode`
    """
    experts = {"high_noise": load_wan(base / "transformer", dtype)}
    if boundary_ratio is not None:
        experts["low_noise"] = load_wan(base / "transformer_2", dtype)
    vae = AutoencoderKLWan.from_pretrained(base / "vae", torch_dtype=torch.float32).eval()
    lynx = load_adapters(adapters, dtype)
    out: dict[str, Tensor] = {}

    text, negative, reference_text = encode_texts(base, [prompt, negative_prompt, REFERENCE_TEXT], dtype)
    out |= {"prompt_embeds": text, "negative_prompt_embeds": negative}

    tokens = no_tokens = None
    if lynx.id_layers:
        tokens, no_tokens = face_tokens(lynx.resampler, face_embedding), no_face_tokens(lynx.resampler)
        out |= {"id_tokens": tokens, "id_tokens_uncond": no_tokens}
    image = None if start_image is None else image_embedding(base, start_image)
    scales = {"high_noise": guidance_scale, "low_noise": guidance_scale_2 or guidance_scale}
    branches, scales_i = {}, {}
    for expert, wan in experts.items():
        acts = adapters_expert in (None, expert)
        features, no_features = [], []
        if lynx.ref_layers and acts:
            latent = encode_reference(vae, face_picture(face_crop), seed, reference_latent)
            no_latent = encode_reference(vae, grey_picture(), seed, reference_latent)
            features = reference_features(wan, latent, reference_text)
            no_features = reference_features(wan, no_latent, reference_text)
            out |= {f"ref_features.{i}": feature for i, feature in enumerate(features)}
            out |= {f"ref_features_uncond.{i}": feature for i, feature in enumerate(no_features)}
        ids, refs = (lynx.id_layers, lynx.ref_layers) if acts else ({}, {})
        # Without any identity, two branches are left: the third would equal the unconditional one.
        scales_i[expert] = guidance_scale_i if acts else None
        somebody = Identity(tokens, ids, ip_scale, features, refs, ref_scale, image)
        nobody = Identity(no_tokens, ids, ip_scale, no_features, refs, ref_scale, image)
        branches[expert] = guidance_branches(text, negative, somebody, nobody, scales[expert], scales_i[expert])
    start_BCTYX = None if start_image is None else encode_start(vae, start_image, num_frames)

    def velocity(x_BCTYX: Tensor, timestep: int) -> Tensor:
        expert = "high_noise" if boundary_ratio is None or timestep >= boundary_ratio * 1000 else "low_noise"
        if start_BCTYX is not None:
            x_BCTYX = torch.cat([x_BCTYX, start_BCTYX], dim=1)
        v = {
            name: forward(experts[expert], x_BCTYX, timestep, *branch)[0].float()
            for name, branch in branches[expert].items()
        }
        for name in v:
            out.setdefault(f"noise_{name}", v[name])  # keeps the first step's
        return guide(v, scales[expert], scales_i[expert])

    sigmas, timesteps = sampler.schedule(sigma_schedule, num_inference_steps, flow_shift)
    noise_BCTYX = initial_noise(seed, width, height, num_frames)
    latents_BCTYX = sampler.sample(velocity, noise_BCTYX, sigmas, timesteps)
    out |= {"sigmas": sigmas, "timesteps": timesteps}
    out |= {"initial_latents": noise_BCTYX, "final_latents": latents_BCTYX}
    if decode:
        out["decoded_video"] = decode_video(vae, latents_BCTYX)
    return out


def load_adapters(files: Mapping[str, Path], dtype: torch.dtype = torch.float32) -> Adapters:
    """Sorts the files' tensors by block. Lite has no registers; its adapter i belongs to block 2i."""
    ids = by_number(load_file(files["ip_layers"]), dtype) if "ip_layers" in files else {}
    if ids and "registers" not in ids[0]:
        ids = {2 * i: layer for i, layer in ids.items()}
    refs = by_number(load_file(files["ref_layers"]), dtype) if "ref_layers" in files else {}
    of_file = load_file(files["resampler"]) if "resampler" in files else {}
    resampler = {name: tensor.to(dtype) for name, tensor in of_file.items()}
    return Adapters(resampler=resampler, id_layers=ids, ref_layers=refs)


def by_number(w: Weights, dtype: torch.dtype | None = None) -> dict[int, Weights]:
    """Tensors named `{i}.…` → i → tensors, converted if a type is given."""
    layers: dict[int, Weights] = {}
    for key, tensor in w.items():
        number, name = key.split(".", 1)
        layers.setdefault(int(number), {})[name] = tensor.to(dtype)
    return layers


def encode_texts(base: Path, texts: list[str], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Each text → [1, 512, d], zeros beyond its own tokens.

    Only a text's own tokens go through the encoder: the same as padding to 512 under an attention mask.
    """
    tokenizer = AutoTokenizer.from_pretrained(base / "tokenizer")
    encoder = UMT5EncoderModel.from_pretrained(base / "text_encoder", dtype=dtype).eval()
    encoded = []
    for text in texts:
        ids_BS = tokenizer(clean_text(text), max_length=TEXT_TOKENS, truncation=True, return_tensors="pt").input_ids
        text_BSd = encoder(ids_BS).last_hidden_state
        encoded.append(F.pad(text_BSd, (0, 0, 0, TEXT_TOKENS - ids_BS.shape[1])))
    return encoded


def clean_text(text: str) -> str:
    """Mends broken Unicode, resolves HTML entities (twice, for `&amp;lt;`), and leaves single spaces."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


def face_tokens(w: Weights, face_embedding: Tensor) -> Tensor:
    """The face's vector [512] → ID tokens [1, 16, ·]."""
    return resample(w, face_embedding.float().view(1, 1, -1))


def no_face_tokens(w: Weights) -> Tensor:
    """ID tokens of the unconditional branch: what the resampler makes of a zero vector. They are not zero."""
    return resample(w, torch.zeros(1, 1, w["proj_in.weight"].shape[1]))


def resample(w: Weights, face_B1e: Tensor) -> Tensor:
    """A perceiver: learned queries read the face, and each other, over a few layers."""
    face_B1M = linear(w, "proj_in", face_B1e)
    x_BQM = w["latents"]
    for _, layer in sorted(by_number(scope(w, "layers")).items()):
        x_BQM = x_BQM + resampler_attention(scope(layer, "0"), face_B1M, x_BQM)
        x_BQM = x_BQM + resampler_feed_forward(scope(layer, "1"), x_BQM)
    return layer_norm(linear(w, "proj_out", x_BQM), RESAMPLER_EPS, scope(w, "norm_out"))


def resampler_attention(w: Weights, face_B1M: Tensor, x_BQM: Tensor) -> Tensor:
    """Queries attend to the face followed by themselves. `norm1` is the face's, `norm2` the queries'."""
    face_B1M = layer_norm(face_B1M, RESAMPLER_EPS, scope(w, "norm1"))
    x_BQM = layer_norm(x_BQM, RESAMPLER_EPS, scope(w, "norm2"))
    k, v = linear(w, "to_kv", torch.cat([face_B1M, x_BQM], dim=1)).chunk(2, dim=-1)
    q, k, v = (t.unflatten(-1, (-1, RESAMPLER_HEAD_DIM)) for t in (linear(w, "to_q", x_BQM), k, v))
    return linear(w, "to_out", attend(q, k, v))


def resampler_feed_forward(w: Weights, x_BQM: Tensor) -> Tensor:
    """Norm, then two layers without bias and an exact GELU between."""
    normed_BQM = layer_norm(x_BQM, RESAMPLER_EPS, scope(w, "0"))
    return linear(w, "3", F.gelu(linear(w, "1", normed_BQM)))


def face_picture(crop: np.ndarray) -> Tensor:
    """uint8 RGB [256, 256, 3] → a video of one frame [1, 3, 1, 256, 256] in [-1, 1]."""
    return (torch.from_numpy(crop).permute(2, 0, 1)[None, :, None] / 255 - 0.5) / 0.5


def grey_picture() -> Tensor:
    """The unconditional branch's picture: zero in [-1, 1], so mid-grey rather than black."""
    return torch.zeros(1, 3, 1, 256, 256)


def encode_reference(vae: AutoencoderKLWan, picture: Tensor, seed: int, how: str) -> Tensor:
    """A picture → the latent [1, 16, 1, 32, 32] of the reference pass, drawn with seed + 1 or the mode."""
    if how not in ("sample", "mode"):
        raise ValueError(f"reference_latent is {how!r}; allowed are 'sample' and 'mode'")
    posterior = vae.encode(picture).latent_dist
    raw = posterior.mean
    if how == "sample":
        # a new generator for each picture: both are drawn with the same noise
        generator = torch.Generator().manual_seed(seed + 1)
        raw = raw + posterior.std * torch.randn(raw.shape, generator=generator)
    mean, std = latent_statistics(vae)
    return (raw - mean) / std


def reference_features(wan: Wan, latent_BCTYX: Tensor, text_BSd: Tensor) -> list[Tensor]:
    """One pass over the face, as a clean video of one frame, with no adapter at work: block → [1, 256, D].

    Where the base begins with a picture, there is none: its channels are zeros.
    """
    missing = wan.weights["patch_embedding.weight"].shape[1] - latent_BCTYX.shape[1]
    latent_BCTYX = torch.cat([latent_BCTYX, latent_BCTYX.new_zeros(1, missing, *latent_BCTYX.shape[2:])], dim=1)
    return forward(wan, latent_BCTYX, REFERENCE_TIMESTEP, text_BSd)[1]


def encode_start(vae: AutoencoderKLWan, picture: np.ndarray, num_frames: int) -> Tensor:
    """The first frame → what the model sees beside the noise, [1, 20, T, Y, X]: mask, then latents.

    The video is grey after its first frame. Of the mask's four channels, one for each frame in a latent frame, all
    are one in the first latent frame.
    """
    first = torch.tensor(picture).permute(2, 0, 1)[None, :, None] / 127.5 - 1
    grey = torch.zeros(1, 3, num_frames - 1, *picture.shape[:2])
    mean, std = latent_statistics(vae)
    latent = (vae.encode(torch.cat([first, grey], dim=2)).latent_dist.mean - mean) / std
    mask = torch.zeros(1, 4, *latent.shape[2:])
    mask[:, :, 0] = 1
    return torch.cat([mask, latent], dim=1)


def image_embedding(base: Path, picture: np.ndarray) -> Tensor | None:
    """The first frame → its CLIP tokens [1, 257, d], of the last layer but one; None without an image encoder."""
    if not (base / "image_encoder").exists():
        return None
    processor = CLIPImageProcessorPil.from_pretrained(base / "image_processor")
    encoder = CLIPVisionModel.from_pretrained(base / "image_encoder", dtype=torch.float32).eval()
    pixels = processor(images=Image.fromarray(picture), return_tensors="pt").pixel_values
    return encoder(pixels, output_hidden_states=True).hidden_states[-2]


def guidance_branches(
    text_BSd: Tensor,
    negative_BSd: Tensor,
    somebody: Identity,
    nobody: Identity,
    guidance_scale: float,
    guidance_scale_i: float | None,
) -> dict[str, tuple[Tensor, Identity]]:
    """The forwards of a step, each by its text and its identity: one, two or three.

    guidance_scale ≤ 1 leaves nothing to guide away from, whatever guidance_scale_i says.
    """
    branches = {"cond": (text_BSd, somebody)}
    if guidance_scale > 1:
        branches["uncond"] = (negative_BSd, nobody)
        if guidance_scale_i is not None:
            branches["image_only"] = (negative_BSd, somebody)
    return branches


def guide(v: dict[str, Tensor], guidance_scale: float, guidance_scale_i: float | None) -> Tensor:
    """One velocity from those of the branches.

    From nothing to the identity by guidance_scale_i, and from there to the prompt by guidance_scale.
    """
    c, u, i = v["cond"], v.get("uncond"), v.get("image_only")
    if u is None:
        return c
    if i is None:
        return u + guidance_scale * (c - u)
    return u + guidance_scale_i * (i - u) + guidance_scale * (c - i)


def initial_noise(seed: int, width: int, height: int, num_frames: int) -> Tensor:
    """[1, 16, T, Y, X], drawn on the CPU, whose generator gives the same numbers everywhere."""
    shape = (1, 16, (num_frames - 1) // 4 + 1, height // 8, width // 8)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def decode_video(vae: AutoencoderKLWan, latents_BCTYX: Tensor) -> Tensor:
    """Latents → frames [1, 3, frames, height, width] in [-1, 1]."""
    mean, std = latent_statistics(vae)
    return vae.decode(latents_BCTYX * std + mean).sample


def latent_statistics(vae: AutoencoderKLWan) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the VAE's channels, by which the model's latents are normalised."""
    mean, std = torch.tensor(vae.config.latents_mean), torch.tensor(vae.config.latents_std)
    return mean.view(1, -1, 1, 1, 1), std.view(1, -1, 1, 1, 1)
