"""``demo:tiny``: a whole Wan2.1-T2V checkpoint with Lynx adapters, random, 9 MB, built offline in seconds.

Every file has the names, keys and layout of the real one (``Wan-AI/Wan2.1-T2V-14B-Diffusers`` and
``ByteDance/lynx``), so that loading it exercises the same code. Its videos are coloured noise that
moves, follows the prompt and follows the face.

Bytes are the same on every machine: each tensor comes from its own generator, seeded by its name, and
from integers scaled by one multiplication (``randn`` is not bit-equal between CPU types).

    python -m lynx_parallel.demo.checkpoint [FOLDER]
"""

from __future__ import annotations

import contextlib
import errno
import gc
import json
import math
import os
import re
import secrets
import shutil
import string
import sys
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lynx_parallel.demo import tiny
from lynx_parallel.demo.places import INVENTORY, demo_root, is_built
from lynx_parallel.errors import CheckpointError, ClusterError, LynxError
from lynx_parallel.inputs.cache_root import cache_root

if TYPE_CHECKING:
    from torch import Tensor


def ensure_demo(root: Path | None = None) -> Path:
    """Builds the demo if it is missing, and returns its folder.

    Built in a folder beside it, then renamed: at no moment does an unfinished one have the name. Several
    processes may call this at once; the first to finish wins and the others drop theirs.

    Raises:
        ClusterError: the folder cannot be written.
        CheckpointError: ``root`` is something else than a demo checkpoint; nothing is touched.
    """
    return ensure_built(root or demo_root(), build, "checkpoint")


def ensure_built(root: Path, build: Callable[[Path], None], what: str) -> Path:
    """Builds a part of the demo as ``ensure_demo`` does: ``build`` fills a folder and writes its inventory last."""
    if is_built(root):
        return root
    scratch = root.parent / f".{root.name}.{os.getpid()}-{secrets.token_hex(4)}"
    try:
        scratch.mkdir(parents=True)
        build(scratch)
        _move_into_place(scratch, root)
    except OSError as error:
        hint = "" if root.parent != cache_root() else "; LYNX_CACHE names another cache folder"
        raise ClusterError(f"cannot write the demo {what} to {root}: {error.strerror or error}{hint}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return root


def _move_into_place(scratch: Path, root: Path) -> None:
    while True:
        try:
            scratch.rename(root)  # replaces an empty folder, never a full one
            return
        except OSError as error:
            if is_built(root):
                return
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            if root.exists() and not (root / INVENTORY).is_file():
                raise CheckpointError(f"{root} exists and is not a demo checkpoint: move it away") from None
        damaged = root.parent / f"{scratch.name}.damaged"
        with contextlib.suppress(FileNotFoundError):  # another process moved it just now
            root.rename(damaged)
        shutil.rmtree(damaged, ignore_errors=True)


def build(root: Path) -> None:
    """Writes all files of the demo into the folder ``root``."""
    import torch
    from diffusers import AutoencoderKLWan, WanTransformer3DModel
    from transformers import UMT5Config, UMT5EncoderModel

    wan = root / "wan"
    with torch.device("meta"):
        transformer = WanTransformer3DModel(**_arguments(tiny.TRANSFORMER))
        vae = AutoencoderKLWan(**_arguments(tiny.VAE))
        text_encoder = UMT5EncoderModel(UMT5Config(**_arguments(tiny.TEXT_ENCODER)))

    write_json(wan / "model_index.json", tiny.MODEL_INDEX)
    write_json(wan / "scheduler/scheduler_config.json", tiny.SCHEDULER)
    for part, config, module, file in (
        ("transformer", tiny.TRANSFORMER, transformer, "diffusion_pytorch_model.safetensors"),
        ("vae", tiny.VAE, vae, "diffusion_pytorch_model.safetensors"),
        ("text_encoder", tiny.TEXT_ENCODER, text_encoder, "model.safetensors"),
    ):
        write_json(wan / part / "config.json", config)
        shapes = {key: tuple(value.shape) for key, value in module.state_dict().items()}
        shapes.pop("encoder.embed_tokens.weight", None)  # the same tensor as shared.weight
        tensors = fill(part, shapes, tiny.RULES[part])
        if part == "vae":  # small posterior variance: its second half of outputs is the log-variance
            tensors["quant_conv.bias"][16:] -= 6.0
        write_tensors(wan / part / file, tensors)
    _write_tokenizer(wan / "tokenizer")

    for variant, id_dim in (("full", tiny.DIM), ("lite", tiny.LITE_ID_DIM)):
        for file, shapes in tiny.adapter_shapes(variant, id_dim).items():
            tensors = fill(f"{variant}/{file}", shapes, tiny.RULES["adapters"])
            write_tensors(root / variant / f"{file}.safetensors", tensors)

    files = sorted(path for path in root.rglob("*") if path.is_file())
    write_json(root / INVENTORY, {path.relative_to(root).as_posix(): path.stat().st_size for path in files})


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in config.items() if k not in ("_class_name", "architectures", "model_type")}


def fill(
    part: str, shapes: Mapping[str, tuple[int, ...]], rules: tuple[tuple[str, float, str], ...]
) -> dict[str, Tensor]:
    """Returns a uniform tensor for each key. The first matching rule gives mean and standard deviation."""
    import torch

    tensors = {}
    for key, shape in shapes.items():
        mean, spread = next((mean, spread) for pattern, mean, spread in rules if re.search(pattern, key))
        size, _, per_input = spread.partition("/")
        std = float(size) / (math.sqrt(math.prod(shape[1:])) if per_input else 1.0)
        generator = torch.Generator().manual_seed(zlib.crc32(f"{part}:{key}".encode()))
        whole = torch.randint(-(2**23), 2**23 + 1, shape, generator=generator)
        tensors[key] = whole.to(torch.float32) * (std * math.sqrt(3) / 2**23) + mean
    return tensors


def _write_tokenizer(folder: Path) -> None:
    """Writes a tokenizer of ASCII characters and bytes: no prompt is unknown, and no two are the same."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    printable = sorted(set(string.printable) - set(string.whitespace))
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(f"<0x{byte:02X}>", -100.0) for byte in range(256)]  # used only if nothing else fits
    pieces += [(character, -3.0) for character in printable]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    write_json(folder / "tokenizer_config.json", tiny.TOKENIZER_CONFIG)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    from safetensors.torch import save

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(save(tensors, metadata={"format": "pt"}))  # transformers insists on the format


def main(arguments: list[str]) -> None:
    if len(arguments) > 1 or arguments[:1] in (["-h"], ["--help"]):
        raise SystemExit("usage: python -m lynx_parallel.demo.checkpoint [FOLDER]")
    try:
        print(ensure_demo(Path(arguments[0]).absolute() if arguments else None))
    except LynxError as error:
        print(error, file=sys.stderr)
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    gc.disable()  # the imports make a million objects that stay, and no garbage
    main(sys.argv[1:])
