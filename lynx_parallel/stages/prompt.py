"""Prompts → UMT5 embeddings. The text encoder is large and needed briefly: load, encode, let go."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from transformers import AutoTokenizer, UMT5EncoderModel

from lynx_parallel.errors import CheckpointError

MAX_TOKENS = 512
"""Wan's text length: longer prompts are cut, shorter ones zero-padded, and the zeros are attended."""


class TextEncoder:
    """UMT5 and its tokenizer.

    Args:
        base: model folder in diffusers layout (``tokenizer/`` and ``text_encoder/``).

    Raises:
        CheckpointError: the folder holds no loadable tokenizer or encoder.
    """

    def __init__(self, base: Path, *, dtype: torch.dtype, device: torch.device | str = "cpu"):
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(base / "tokenizer", local_files_only=True)
            encoder = UMT5EncoderModel.from_pretrained(base / "text_encoder", dtype=dtype, local_files_only=True)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{base}: text encoder: {str(error).splitlines()[0]}") from error
        self.encoder = encoder.requires_grad_(False).eval().to(device)
        self.device = torch.device(device)

    @torch.no_grad()
    def __call__(self, prompt: str) -> torch.Tensor:
        """One prompt → [tokens, text_dim], its own tokens alone, in the encoder's dtype; see ``pad``.

        One at a time: an embedding must not depend on which others share its batch.
        """
        tokens = self.tokenizer(
            prompt_clean(prompt), padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
        )
        ids, mask = tokens.input_ids.to(self.device), tokens.attention_mask.to(self.device)
        return self.encoder(ids, mask).last_hidden_state[0, : int(mask.sum())]


def pad(embeds_SC: torch.Tensor) -> torch.Tensor:
    """[tokens, text_dim] → [1, 512, text_dim], zeros at the end."""
    return F.pad(embeds_SC, (0, 0, 0, MAX_TOKENS - embeds_SC.shape[0]))[None]


def encode_prompts(
    base: Path, prompts: Iterable[str], *, dtype: torch.dtype, device: torch.device | str
) -> dict[str, torch.Tensor]:
    """Embeddings on the CPU, [tokens, text_dim] by prompt; the encoder is loaded for it and let go."""
    encoder = TextEncoder(base, dtype=dtype, device=device)
    return {prompt: encoder(prompt).cpu() for prompt in dict.fromkeys(prompts)}
