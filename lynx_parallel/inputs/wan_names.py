"""Names of the parts of Wan's transformer: Wan's own, as single files have them, and diffusers'.

Source of the pairs: diffusers' conversion of single files, and its script for Wan.
"""

from __future__ import annotations

import re

_ATTENTION = {"q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0"}
_BLOCK = {
    **{f"self_attn.{wan}": f"attn1.{ours}" for wan, ours in _ATTENTION.items()},
    **{f"cross_attn.{wan}": f"attn2.{ours}" for wan, ours in _ATTENTION.items()},
    **{f"{wan}.{norm}": f"{ours}.{norm}" for wan, ours in (("self_attn", "attn1"), ("cross_attn", "attn2"))
       for norm in ("norm_q", "norm_k")},
    "cross_attn.k_img": "attn2.add_k_proj",
    "cross_attn.v_img": "attn2.add_v_proj",
    "cross_attn.norm_k_img": "attn2.norm_added_k",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
    "norm3": "norm2",  # Wan's norm1 and norm2 have no weights
    "modulation": "scale_shift_table",
}  # fmt: skip
_TOP = {
    "patch_embedding": "patch_embedding",
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "img_emb.proj.0": "condition_embedder.image_embedder.norm1",
    "img_emb.proj.1": "condition_embedder.image_embedder.ff.net.0.proj",
    "img_emb.proj.3": "condition_embedder.image_embedder.ff.net.2",
    "img_emb.proj.4": "condition_embedder.image_embedder.norm2",
    "img_emb.emb_pos": "condition_embedder.image_embedder.pos_embed",
    "head.head": "proj_out",
    "head.modulation": "scale_shift_table",
}
_IN_BLOCK = re.compile(r"blocks\.(0|[1-9][0-9]{0,3})\.(.+)")
PREFIXES = (
    "model.diffusion_model.", "diffusion_model.", "base_model.model.", "transformer.", "pipe.dit.", "net.", "model.",
)  # fmt: skip
"""Prefixes before the names of a transformer in the files of other programs."""


def without_prefix(key: str) -> str:
    """Returns a key without the prefixes that programs put before it."""
    while prefix := next((prefix for prefix in PREFIXES if key.startswith(prefix)), ""):
        key = key.removeprefix(prefix)
    return key


def to_diffusers(name: str) -> str | None:
    """Returns diffusers' name of a part or a parameter, given Wan's name without prefix; None if Wan has no such part.

    ``blocks.3.norm3.weight`` gives ``blocks.3.norm2.weight``.
    """
    match = _IN_BLOCK.fullmatch(name)
    start, rest, pairs = (f"blocks.{match[1]}.", match[2], _BLOCK) if match else ("", name, _TOP)
    for wan, ours in pairs.items():
        if rest == wan or rest.startswith(f"{wan}."):
            return f"{start}{ours}{rest.removeprefix(wan)}"
    return None


def parameter_name(key: str) -> str | None:
    """Returns diffusers' name of a key of a single file, or None for a part of another model in the same file.

    The file may have Wan's names or diffusers'.
    """
    name = without_prefix(key)
    if (target := to_diffusers(name)) is not None:
        return target
    return None if name.startswith(("text_encoders.", "vae.", "first_stage_model.", "cond_stage_model.")) else name


def spellings(blocks: int) -> dict[str, str]:
    """Returns diffusers' name of every module, by each name under which LoRA files know it.

    These are Wan's and diffusers' names, mixtures of both (``self_attn.to_q``), and all of them with ``_`` for ``.``.

    Args:
        blocks: number of transformer blocks.
    """
    names: dict[str, str] = {}
    pairs = dict(_TOP)
    for i in range(blocks):
        for wan, ours in _BLOCK.items():
            pairs[f"blocks.{i}.{wan}"] = f"blocks.{i}.{ours}"
            kind, _, leaf = wan.partition(".")
            if leaf in _ATTENTION:
                pairs[f"blocks.{i}.{kind}.{_ATTENTION[leaf]}"] = f"blocks.{i}.{ours}"
    for wan, ours in pairs.items():
        for name in (wan, ours):
            names[name] = names[name.replace(".", "_")] = ours
    return names
