"""Makes the inputs of a shot: noise, prompt embeddings, ID tokens, reference latents, first frame."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, MutableMapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan

from lynx_parallel.inputs.sampling import REFERENCE_PROMPT, Sampling
from lynx_parallel.model.adapters import Resampler
from lynx_parallel.model.precision import Fp32Precision
from lynx_parallel.stages.conditioning import ShotInputs
from lynx_parallel.stages.first_frame import FirstFrames
from lynx_parallel.stages.kept_encoder import KeptEncoder
from lynx_parallel.stages.latents import encode_reference, initial_noise
from lynx_parallel.stages.prompt import pad


class InputMaker:
    """Makes the inputs of shots of one model.

    Attributes:
        encoded_prompts: embeddings by prompt.
        text_encoder: what makes them. By default it is loaded for each new prompt, and freed afterwards.

    Args:
        base: model folder in diffusers layout.
        config: of the transformer.
        resampler: None without an ID adapter.
        dtype: of the text encoder and of the transformer.
        precision: of the convolutions of an fp32 VAE on CUDA.
    """

    def __init__(
        self,
        base: Path,
        config: Any,
        vae: AutoencoderKLWan,
        resampler: Resampler | None,
        dtype: torch.dtype,
        device: torch.device,
        precision: Fp32Precision,
    ):
        self.encoded_prompts: MutableMapping[str, torch.Tensor] = {}
        self.text_encoder = KeptEncoder(base, dtype=dtype, device=device)
        self._vae, self._resampler = vae, resampler
        self._first_frames = FirstFrames(base, config, vae, device, precision)
        self._dtype, self._device, self._precision = dtype, device, precision
        self._unconditional: dict[Hashable, torch.Tensor] = {}

    def encode_prompts(self, prompts: Iterable[str]) -> None:
        """Makes the embeddings of these prompts, as far as they are missing."""
        self.text_encoder.encode(prompts, self.encoded_prompts)

    def texts(self, prompt: str, sampling: Sampling, *, reference: bool) -> list[str]:
        """Returns all texts of a shot.

        Args:
            reference: whether the shot has a reference pass.
        """
        return [prompt, sampling.negative_prompt, *([REFERENCE_PROMPT] if reference else [])]

    def prompt_embeds(self, prompt: str) -> torch.Tensor:
        """Returns a prompt's embedding, [1, 512, text_dim]. Encodes it if that was not done before."""
        self.encode_prompts([prompt])
        return pad(self.encoded_prompts[prompt]).to(self._device)

    @torch.no_grad()
    def make(
        self,
        prompt: str,
        sampling: Sampling,
        embedding: np.ndarray,
        reference_latents: torch.Tensor | None,
        start_image: np.ndarray | None,
    ) -> ShotInputs:
        """Returns everything that a shot starts from.

        Args:
            embedding: ArcFace vector [512].
            reference_latents: as from ``reference_latents``; None without a reference adapter.
            start_image: the first frame, uint8 RGB [H, W, 3], for a base that begins with one.

        Raises:
            ValueError: ``start_image`` is missing, or the base takes none.
        """
        self.encode_prompts(self.texts(prompt, sampling, reference=reference_latents is not None))
        self.text_encoder.make_room(sampling)
        inputs = ShotInputs(
            noise=initial_noise(sampling.width, sampling.height, sampling.num_frames, sampling.seed).to(self._device),
            prompt_embeds=self.prompt_embeds(prompt),
            negative_prompt_embeds=self.prompt_embeds(sampling.negative_prompt),
            **self._first_frames.inputs(start_image, sampling, self._dtype),
        )
        if self._resampler is not None:
            vector = torch.from_numpy(embedding).to(self._device, self._dtype).view(1, 1, -1)
            # Upstream's unconditional identity is the resampler's output for zeros, not zeros.
            tokens, no_tokens = self._resampler(vector), self._resampler(torch.zeros_like(vector))
            inputs = replace(inputs, id_tokens=tokens, id_tokens_uncond=no_tokens)
        if reference_latents is None:
            return inputs
        return replace(
            inputs,
            reference_prompt_embeds=self.prompt_embeds(REFERENCE_PROMPT),
            reference_latents=reference_latents.to(self._device),
            reference_latents_uncond=self._reference_latents_uncond(sampling),
        )

    def reference_latents(self, crop: np.ndarray | None, sampling: Sampling) -> torch.Tensor:
        """Returns a face crop, or a grey picture for None, as latents [1, 16, 1, size/8, size/8], fp32."""
        return encode_reference(
            self._vae, crop, size=sampling.reference_size, mode=sampling.reference_latent, seed=sampling.seed,
            precision=self._precision,
        )  # fmt: skip

    def _reference_latents_uncond(self, sampling: Sampling) -> torch.Tensor:
        """Returns the latents of the grey picture, which all subjects share. A drawn posterior depends on the seed."""
        key = sampling.reference_size, sampling.seed if sampling.reference_latent == "sample" else None
        if key not in self._unconditional:
            self._unconditional = {key: self.reference_latents(None, sampling)}
        return self._unconditional[key]
