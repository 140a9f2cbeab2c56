"""The inputs of a shot, and the static keys and values of its guidance branches."""

from __future__ import annotations

import hashlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch

from lynx_parallel.inputs.guidance import BranchName, sampling_coefficients
from lynx_parallel.inputs.memory import CONDITIONING_ENTRIES
from lynx_parallel.inputs.sampling import Sampling, parse_blocks
from lynx_parallel.model.block import KV, BlockConditioning
from lynx_parallel.model.transformer import Branch, LynxTransformer
from lynx_parallel.stages.denoise import LocalGuidance, Phase

T = TypeVar("T")


@dataclass(frozen=True)
class ShotInputs:
    """All tensors that a shot starts from. A gang's rank 0 makes them and broadcasts them.

    Attributes:
        noise: [1, 16, T, h, w] fp32.
        prompt_embeds, negative_prompt_embeds: [1, 512, text_dim].
        id_tokens, id_tokens_uncond: [1, 16, id_dim]; None without an ID adapter.
        reference_prompt_embeds: [1, 512, text_dim]; None without a reference adapter, as the next two.
        reference_latents, reference_latents_uncond: [1, 16, 1, 32, 32] fp32.
        start: mask and latents of the first frame, [1, 20, T, h, w] fp32; None for a T2V base.
        image_embeds: CLIP embedding of the first frame, [1, 257, image_dim]; None for a base that sees none.
    """

    noise: torch.Tensor
    prompt_embeds: torch.Tensor
    negative_prompt_embeds: torch.Tensor
    id_tokens: torch.Tensor | None = None
    id_tokens_uncond: torch.Tensor | None = None
    reference_prompt_embeds: torch.Tensor | None = None
    reference_latents: torch.Tensor | None = None
    reference_latents_uncond: torch.Tensor | None = None
    start: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None


class ConditioningCache:
    """Static keys and values by kind and by the content of their source tensor, kept from shot to shot.

    Attributes:
        counts: how often each kind (``text``, ``identity``, ``reference``) was computed, and found (``… kept``).

    Args:
        entries: sets that are kept. The least recently used set is dropped first.
    """

    def __init__(self, entries: int = CONDITIONING_ENTRIES):
        self.counts: Counter[str] = Counter()
        self._entries = entries
        self._sets: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, kind: str, source: torch.Tensor, make: Callable[[torch.Tensor], T], weights: str = "") -> T:
        """Returns ``make(source)``, computed once for each content of ``source``.

        Args:
            weights: name of the weights that compute it, if they are not the transformer's usual ones.
        """
        key = kind, weights, hashlib.sha256(source.detach().cpu().contiguous().view(torch.uint8).numpy()).hexdigest()
        found = key in self._sets
        self.counts[f"{kind} kept" if found else kind] += 1
        if not found:
            self._sets[key] = make(source)
        self._sets.move_to_end(key)
        while len(self._sets) > self._entries:
            self._sets.popitem(last=False)
        return self._sets[key]

    def clear(self) -> None:
        """Drops all sets, for example because the transformer that made them is replaced."""
        self._sets.clear()


@torch.no_grad()
def reference_features(
    transformer: LynxTransformer, inputs: ShotInputs, cache: ConditioningCache, *, unconditional: bool = False
) -> list[torch.Tensor]:
    """Returns the features of the reference pass, one [1, 256, C] for each block.

    Raises:
        ValueError: the adapters have no reference branch.
    """
    latents = inputs.reference_latents_uncond if unconditional else inputs.reference_latents
    if latents is None or inputs.reference_prompt_embeds is None:
        raise ValueError("these adapters have no reference branch")
    with transformer.reference_weights():
        own = transformer.name if transformer.loras is None else f"{transformer.name} without LoRAs"
        text = cache.get("text", inputs.reference_prompt_embeds, transformer.text_kv, own)
        return transformer.reference_features(latents.to(transformer.dtype), text)


@torch.no_grad()
def make_phase(
    transformer: LynxTransformer,
    inputs: ShotInputs,
    sampling: Sampling,
    guidance: LocalGuidance,
    cache: ConditioningCache,
    *,
    inside: bool = True,
) -> Phase:
    """Returns the guidance inside or outside the identity window.

    It holds the coefficients of all branches, and the static keys and values of the branches that this rank computes.
    """
    has_reference, has_identity = transformer.has_reference, transformer.has_identity
    coefficients = sampling_coefficients(
        sampling, has_reference=has_reference, has_identity=has_identity, inside=inside
    )
    get = partial(cache.get, weights=transformer.name)
    blocks = parse_blocks(sampling.ref_blocks)
    branches: dict[BranchName, Branch] = {}
    for name in guidance.mine(list(coefficients)):
        unconditional = name == "u"
        embeds = inputs.prompt_embeds if name == "c" else inputs.negative_prompt_embeds
        text = get("text", embeds, transformer.text_kv)
        identity: list[KV | None] = [None] * len(text)
        reference = identity
        image: Sequence[KV | None] = identity
        if inputs.image_embeds is not None:
            image = get("image", inputs.image_embeds, transformer.image_kv)
        if inside and sampling.ip_scale and has_identity:
            tokens = inputs.id_tokens_uncond if unconditional else inputs.id_tokens
            assert tokens is not None
            identity = get("identity", tokens, transformer.identity_kv)
        if inside and sampling.ref_scale and has_reference:
            latents = inputs.reference_latents_uncond if unconditional else inputs.reference_latents
            assert latents is not None
            make = partial(_reference_kv, transformer, inputs, cache, unconditional)
            all_blocks = get("reference", latents, make)
            reference = [kv if blocks is None or i in blocks else None for i, kv in enumerate(all_blocks)]
        branches[name] = [
            BlockConditioning(*kv, sampling.ip_scale, sampling.ref_scale)
            for kv in zip(text, identity, reference, image, strict=True)
        ]
    return Phase(coefficients, branches, transformer, inputs.start)


def _reference_kv(
    transformer: LynxTransformer, inputs: ShotInputs, cache: ConditioningCache, unconditional: bool, _: torch.Tensor
) -> list[KV | None]:
    return transformer.reference_kv(reference_features(transformer, inputs, cache, unconditional=unconditional))
