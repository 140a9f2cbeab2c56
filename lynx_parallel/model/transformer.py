"""The Wan transformer's forward with Lynx's two adapters, on diffusers' own modules.

The forward is written here rather than in attention processors, because Lynx needs three things a
processor cannot give cleanly: static keys and values instead of text embeddings, a reference
attention that sees the queries before RoPE, and the inputs of every self-attention (the reference
features).

Legend: B batch, N all tokens, L this rank's tokens, S key tokens, C channels; latents are
[B, 16, T, h, w]. A base that begins with a picture takes 36 channels: the latents, a mask (4) and the
picture's latents (16).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from torch import nn

from lynx_parallel.inputs.projections import ProjectionKind
from lynx_parallel.model.adapters import IDProjection, RefProjection
from lynx_parallel.model.attention import LocalTokens
from lynx_parallel.model.block import KV, BlockConditioning, LynxBlock, Rotary
from lynx_parallel.model.lora import MergedLoras
from lynx_parallel.model.projections import KeptProjections

T = TypeVar("T")
Branch = list[BlockConditioning]
"""The conditioning of one guidance branch, block by block."""


class LynxTransformer(nn.Module):
    """Wan's transformer and Lynx's ID and reference projections.

    State-dict keys are those of ``WanTransformer3DModel`` plus ``blocks.{i}.id_adapter.*`` and
    ``blocks.{i}.ref_adapter.*``.

    Attributes:
        config: diffusers' configuration of the transformer.
        tokens: how the token axis lies over ranks; ``parallel.apply.parallelize`` replaces it.
        projections: where the weights behind static keys and values live.
        loras: LoRAs that are left out of the reference pass, if any.
        name: of the expert, for caches; empty for a base with one transformer.
    """

    def __init__(
        self,
        wan: WanTransformer3DModel,
        id_adapters: Mapping[int, IDProjection] | None = None,
        ref_adapters: Mapping[int, RefProjection] | None = None,
    ):
        super().__init__()
        id_adapters, ref_adapters = id_adapters or {}, ref_adapters or {}
        self.config = wan.config
        self.rope = wan.rope
        self.patch_embedding = wan.patch_embedding
        self.condition_embedder = wan.condition_embedder
        self.blocks = nn.ModuleList(
            LynxBlock(block, id_adapters.get(i), ref_adapters.get(i)) for i, block in enumerate(wan.blocks)
        )
        self.norm_out = wan.norm_out
        self.proj_out = wan.proj_out
        self.scale_shift_table = wan.scale_shift_table
        self.tokens = LocalTokens()
        self.projections = KeptProjections()
        self.loras: MergedLoras | None = None
        self.name = ""
        self.requires_grad_(False).eval()

    @property
    def dtype(self) -> torch.dtype:
        return self.patch_embedding.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.patch_embedding.weight.device

    @property
    def has_reference(self) -> bool:
        """Whether any block has a reference adapter (full, or lite ID with full reference)."""
        return any(block.ref_adapter is not None for block in self.blocks)

    @property
    def has_identity(self) -> bool:
        """Whether any block has an ID adapter."""
        return any(block.id_adapter is not None for block in self.blocks)

    def forward(self, latents_BCThw: torch.Tensor, timestep_B: torch.Tensor, branch: Branch) -> torch.Tensor:
        """Returns one branch's velocity at one step.

        Args:
            latents_BCThw: noisy latents, [B, 16, T, h, w], in the model's dtype, identical on every rank. With 36
                channels for a base that begins with a picture.
            timestep_B: [B], 0 … 999.
            branch: static keys and values, one entry a block.

        Returns:
            Velocity [B, 16, T, h, w], identical on every rank.
        """
        x, rotary = self._embed(latents_BCThw)
        length = x.shape[1]
        x, rotary = self.tokens.split(x), (self.tokens.split(rotary[0]), self.tokens.split(rotary[1]))
        temb, modulation = self._time(timestep_B)
        for block, conditioning in zip(self.blocks, branch, strict=True):
            x = block(x, modulation, rotary, conditioning, self.tokens, length)
        shift, scale = (self.scale_shift_table + temb.unsqueeze(1)).chunk(2, dim=1)
        x = self.proj_out((self.norm_out(x.float()) * (1 + scale) + shift).type_as(x))
        return self._unpatchify(self.tokens.gather(x, length), latents_BCThw.shape)

    @contextmanager
    def reference_weights(self) -> Iterator[None]:
        """Gives the transformer, within the block, the weights of the reference pass: without ``loras``."""
        if self.loras is None:
            yield
            return
        self.projections.without_loras = True
        try:
            with self.loras.switched_off(self):
                yield
        finally:
            self.projections.without_loras = False

    def reference_features(self, latents_BCThw: torch.Tensor, text: list[KV]) -> list[torch.Tensor]:
        """Runs the reference pass: a face crop's latents through the frozen transformer at timestep 0.

        No identity acts, no reference and no first frame, whose channels are zeros as in ComfyUI-WanVideoWrapper.
        ``text`` is that of "image of a face". Every rank computes all of it: 256 tokens cost less than splitting them
        would.

        Args:
            latents_BCThw: [B, 16, 1, h/8, w/8] (256×256 pixels → 32×32), in the model's dtype.

        Returns:
            One [B, 256, C] a block: the input of its self-attention, after norm and AdaLN.
        """
        missing = self.config.in_channels - latents_BCThw.shape[1]
        x, rotary = self._embed(F.pad(latents_BCThw, (0, 0, 0, 0, 0, 0, 0, missing)))
        _, modulation = self._time(torch.zeros(x.shape[0], device=x.device, dtype=torch.long))
        here = LocalTokens(self.tokens.kernel)
        features: list[torch.Tensor] = []
        for block, kv in zip(self.blocks, text, strict=True):
            x = block(x, modulation, rotary, BlockConditioning(kv), here, x.shape[1], features)
        return features

    def text_kv(self, prompt_embeds_BSC: torch.Tensor) -> list[KV]:
        """Returns the static K and V of every block's cross-attention for UMT5 embeddings [B, 512, text_dim]."""
        text = self.condition_embedder.text_embedder(prompt_embeds_BSC)
        return self._by_block("text", lambda i, block: block.text_kv(text))

    def image_kv(self, image_embeds_BSC: torch.Tensor) -> list[KV]:
        """Returns the static K and V of the first frame by block, for its CLIP embedding [B, 257, image_dim]."""
        image = self.condition_embedder.image_embedder(image_embeds_BSC)
        return self._by_block("image", lambda i, block: block.image_kv(image))

    def identity_kv(self, id_tokens_BSC: torch.Tensor) -> list[KV | None]:
        """Returns the static K and V of ID tokens [B, 16, id_dim] by block, None for a block without an adapter."""
        return self._by_block("identity", lambda i, block: block.identity_kv(id_tokens_BSC))

    def reference_kv(self, features: list[torch.Tensor]) -> list[KV | None]:
        """Returns the static K and V of reference features by block, None for a block without an adapter."""
        return self._by_block("reference", lambda i, block: block.reference_kv(features[i]))

    def _by_block(self, kind: ProjectionKind, project: Callable[[int, Any], T]) -> list[T]:
        """Returns the result of ``project`` for each block, whose projections of this kind are usable meanwhile."""
        made = []
        for i, block in enumerate(self.blocks):
            with self.projections.borrowed(i, block, kind):
                made.append(project(i, block))
        return made

    def _embed(self, latents_BCThw: torch.Tensor) -> tuple[torch.Tensor, Rotary]:
        """Latents → tokens [B, N, C] and their rotary embedding."""
        rotary = self.rope(latents_BCThw)
        return self.patch_embedding(latents_BCThw).flatten(2).transpose(1, 2).contiguous(), rotary

    def _time(self, timestep_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the time embedding [B, C] and the blocks' modulation [B, 6, C]."""
        embedder = self.condition_embedder
        frequencies = embedder.timesteps_proj(timestep_B)
        # diffusers keeps the time embedder in fp32 whatever the model's dtype.
        temb = embedder.time_embedder(frequencies.to(embedder.time_embedder.linear_1.weight.dtype)).to(self.dtype)
        return temb, embedder.time_proj(embedder.act_fn(temb)).unflatten(1, (6, -1)).float()

    def _unpatchify(self, x_BNC: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """Tokens [B, N, 16·patch] → latents of ``shape``."""
        batch, _, frames, height, width = shape
        pt, ph, pw = self.config.patch_size
        x = x_BNC.reshape(batch, frames // pt, height // ph, width // pw, pt, ph, pw, -1)
        return x.permute(0, 7, 1, 4, 2, 5, 3, 6).reshape(batch, -1, frames, height, width)
