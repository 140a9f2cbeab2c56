"""LoRA files in the layouts of the programs that write them, all of one known change of a transformer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file

State = dict[str, torch.Tensor]

# Written by hand from the model's source. It is not the table of the package.
_WAN = {
    "attn1.to_q": "self_attn.q", "attn1.to_k": "self_attn.k", "attn1.to_v": "self_attn.v",
    "attn1.to_out.0": "self_attn.o", "attn1.norm_q": "self_attn.norm_q", "attn1.norm_k": "self_attn.norm_k",
    "attn2.to_q": "cross_attn.q", "attn2.to_k": "cross_attn.k", "attn2.to_v": "cross_attn.v",
    "attn2.to_out.0": "cross_attn.o", "attn2.norm_q": "cross_attn.norm_q", "attn2.norm_k": "cross_attn.norm_k",
    "ffn.net.0.proj": "ffn.0", "ffn.net.2": "ffn.2", "norm2": "norm3",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "proj_out": "head.head", "patch_embedding": "patch_embedding",
}  # fmt: skip
_OF_IMAGES = {
    "attn2.add_k_proj": "cross_attn.k_img", "attn2.add_v_proj": "cross_attn.v_img",
    "attn2.norm_added_k": "cross_attn.norm_k_img",
    "condition_embedder.image_embedder.norm1": "img_emb.proj.0",
    "condition_embedder.image_embedder.ff.net.0.proj": "img_emb.proj.1",
    "condition_embedder.image_embedder.ff.net.2": "img_emb.proj.3",
    "condition_embedder.image_embedder.norm2": "img_emb.proj.4",
}  # fmt: skip
EMBEDDINGS = tuple(name for name in _WAN if name.startswith("condition_embedder."))
LINEARS = tuple(name for name in _WAN if name.startswith(("attn", "ffn")) and "norm" not in name)
NORMS = ("attn1.norm_q", "attn1.norm_k", "attn2.norm_q", "attn2.norm_k", "norm2")


def wan(module: str) -> str:
    """Wan's name of a module that has diffusers' name."""
    if module.startswith("blocks."):
        _, number, rest = module.split(".", 2)
        return f"blocks.{number}.{(_WAN | _OF_IMAGES)[rest]}"
    return (_WAN | _OF_IMAGES)[module]


@dataclass
class Known:
    """A change of a transformer.

    Attributes:
        pairs: (up, down) by module: the weight changes by up · down.
        differences: by parameter.
    """

    pairs: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    differences: State = field(default_factory=dict)

    def of(self, parameter: str) -> torch.Tensor | None:
        """The whole change of a parameter, or None."""
        if pair := self.pairs.get(parameter.removesuffix(".weight")):
            return pair[0] @ pair[1]
        return self.differences.get(parameter)


def make_known(state: Mapping[str, torch.Tensor], *, rank: int = 3, whole: bool = False, seed: int = 0) -> Known:
    """A random change of all linear layers in the blocks.

    Args:
        whole: also of embeddings, biases, norms, modulation, the head and the patch embedding.
    """
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return 0.05 * torch.randn(*shape, generator=generator)

    known = Known()
    blocks = sorted({int(key.split(".")[1]) for key in state if key.startswith("blocks.")})
    modules = [f"blocks.{i}.{name}" for i in blocks for name in LINEARS] + (list(EMBEDDINGS) if whole else [])
    for module in modules:
        outputs, inputs = state[f"{module}.weight"].shape
        known.pairs[module] = random(outputs, rank), random(rank, inputs)
    if whole:
        names = [f"{module}.bias" for module in [*modules, "proj_out", "patch_embedding"]]
        names += [f"blocks.{i}.{norm}.weight" for i in blocks for norm in NORMS]
        names += [f"blocks.{i}.norm2.bias" for i in blocks] + [f"blocks.{i}.scale_shift_table" for i in blocks]
        names += ["scale_shift_table", "proj_out.weight", "patch_embedding.weight"]
        known.differences = {name: random(*state[name].shape) for name in names}
    return known


def _pairs(known: Known, name: Callable[[str], str], down: str, up: str, alpha: float | None = None) -> State:
    """Keys of the pairs. With an alpha, ``up`` is scaled so that the change stays the same."""
    state: State = {}
    for module, (u, d) in known.pairs.items():
        state[f"{name(module)}.{down}"] = d.clone()
        state[f"{name(module)}.{up}"] = (u if alpha is None else u * d.shape[0] / alpha).clone()
        if alpha is not None:
            state[f"{name(module)}.alpha"] = torch.tensor(alpha)
    return state


def _differences(known: Known, prefix: str) -> State:
    state: State = {}
    for parameter, change in known.differences.items():
        if parameter == "scale_shift_table":
            key = "head.diff_m"
        elif parameter.endswith(".scale_shift_table"):
            key = parameter.replace("scale_shift_table", "diff_m")
        else:
            module, _, kind = parameter.rpartition(".")
            key = f"{wan(module)}.{'diff_b' if kind == 'bias' else 'diff'}"
        state[f"{prefix}{key}"] = change.clone()
    return state


def _mixed_ranks(known: Known) -> State:
    """As ComfyUI's resizing writes them: each module has its own rank, and an alpha of that rank."""
    state: State = {}
    for n, (module, (u, d)) in enumerate(known.pairs.items()):
        more = n % 3  # columns of zeros change nothing but the rank
        u, d = torch.cat([u, torch.zeros(u.shape[0], more)], 1), torch.cat([d, torch.ones(more, d.shape[1])])
        name = f"diffusion_model.{wan(module)}"
        state |= {f"{name}.lora_up.weight": u, f"{name}.lora_down.weight": d}
        state[f"{name}.alpha"] = torch.tensor(float(d.shape[0]))
    return state


DOWN_UP, A_B = ("lora_down.weight", "lora_up.weight"), ("lora_A.weight", "lora_B.weight")
LAYOUTS: dict[str, Callable[[Known], State]] = {
    "ComfyUI": lambda k: _pairs(k, lambda m: f"diffusion_model.{wan(m)}", *DOWN_UP),
    "Wan2.2-Lightning": lambda k: _pairs(k, lambda m: f"diffusion_model.{wan(m)}", *DOWN_UP, 8.0),
    "resized": _mixed_ranks,
    "musubi": lambda k: _pairs(k, lambda m: f"lora_unet_{wan(m).replace('.', '_')}", *DOWN_UP, 2.0),
    "Wan-Fun": lambda k: _pairs(k, lambda m: f"lora_unet__{wan(m).replace('.', '_')}", *DOWN_UP, 4.0),
    "diffusers": lambda k: _pairs(k, lambda m: f"transformer.{m}", *A_B),
    "ai-toolkit": lambda k: _pairs(k, lambda m: f"diffusion_model.{wan(m)}", *A_B),
    "DiffSynth": lambda k: _pairs(k, lambda m: f"pipe.dit.{wan(m)}", "lora_A.default.weight", "lora_B.default.weight"),
    "no prefix": lambda k: _pairs(k, wan, "lora_A.default.weight", "lora_B.default.weight"),
    "PEFT": lambda k: _pairs(k, lambda m: f"base_model.model.{wan(m)}", *A_B),
    "lycoris": lambda k: _pairs(k, lambda m: "lycoris_" + _lycoris(m).replace(".", "_"), *DOWN_UP, 3.0),
    "model prefix": lambda k: _pairs(k, lambda m: f"model.diffusion_model.{wan(m)}", *DOWN_UP),
}
"""Layouts that hold a change of linear layers."""


def _lycoris(module: str) -> str:
    return module.replace("attn1", "self_attn").replace("attn2", "cross_attn")


def whole_file(known: Known) -> State:
    """lightx2v's layout: pairs, differences of everything else, and of the modulation."""
    return LAYOUTS["ComfyUI"](known) | _differences(known, "diffusion_model.")


def write(path: Path, state: State, metadata: Mapping[str, object] | None = None) -> Path:
    header = {"format": "pt"}
    if metadata is not None:
        header["lora_adapter_metadata"] = json.dumps(metadata)
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, path, metadata=header)
    return path
