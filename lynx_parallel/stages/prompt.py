"""Makes UMT5 embeddings of prompts. The text encoder is large: ``KeptEncoder`` decides how long it stays loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, MutableMapping
from contextlib import suppress
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load, save
from transformers import AutoTokenizer, UMT5EncoderModel

from lynx_parallel.errors import CheckpointError
from lynx_parallel.inputs.cleaning import MAX_TOKENS, clean_prompt
from lynx_parallel.output.atomic import atomic_write
from lynx_parallel.output.checksums import add_checksum, metadata_of


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

    @property
    def bytes(self) -> int:
        """Bytes of its weights."""
        return sum(tensor.nbytes for tensor in (*self.encoder.parameters(), *self.encoder.buffers()))

    def to(self, device: torch.device | str) -> None:
        """Moves the encoder. Does nothing if it is there."""
        if self.device != torch.device(device):
            self.device = torch.device(device)
            self.encoder.to(self.device)

    @torch.no_grad()
    def __call__(self, prompt: str) -> torch.Tensor:
        """Encodes one prompt to [tokens, text_dim], without padding, in the encoder's dtype; see ``pad``.

        One at a time: an embedding must not depend on which others share its batch.
        """
        tokens = self.tokenizer(
            clean_prompt(prompt), padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt"
        )
        ids, mask = tokens.input_ids.to(self.device), tokens.attention_mask.to(self.device)
        return self.encoder(ids, mask).last_hidden_state[0, : int(mask.sum())]


def pad(embeds_SC: torch.Tensor) -> torch.Tensor:
    """Pads [tokens, text_dim] with zeros to [1, 512, text_dim]."""
    return F.pad(embeds_SC, (0, 0, 0, MAX_TOKENS - embeds_SC.shape[0]))[None]


class PromptFolder(MutableMapping[str, torch.Tensor]):
    """Embeddings by prompt, in files that several processes share.

    An embedding that cannot be written, for example to a full disk, is kept in memory. A damaged file counts as
    missing.

    Args:
        path: returns the file of a prompt.
        on_damage: called with the path of a damaged file.
    """

    def __init__(self, path: Callable[[str], Path], on_damage: Callable[[Path], None] = lambda path: None):
        self._path = path
        self._on_damage = on_damage
        self._memory: dict[str, torch.Tensor] = {}

    def __getitem__(self, prompt: str) -> torch.Tensor:
        if prompt in self._memory:
            return self._memory[prompt]
        path = self._path(prompt)
        try:
            data = path.read_bytes()
        except OSError:
            raise KeyError(prompt) from None
        with suppress(SafetensorError, KeyError):
            if metadata_of(data) is not None:
                return load(data)["embeds"]
        self._on_damage(path)
        raise KeyError(prompt)

    def __setitem__(self, prompt: str, embeds_SC: torch.Tensor) -> None:
        path = self._path(prompt)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as part:
                part.write_bytes(add_checksum(save({"embeds": embeds_SC.contiguous()}), {}))
        except OSError:
            self._memory[prompt] = embeds_SC

    def __delitem__(self, prompt: str) -> None:
        self._memory.pop(prompt, None)
        self._path(prompt).unlink(missing_ok=True)

    def __iter__(self) -> Iterator[str]:
        return iter(self._memory)  # a file's name does not tell its prompt

    def __len__(self) -> int:
        return len(self._memory)


def encode_prompts(
    base: Path,
    prompts: Iterable[str],
    into: MutableMapping[str, torch.Tensor],
    *,
    dtype: torch.dtype,
    device: torch.device | str,
) -> None:
    """Adds the missing embeddings of these prompts to a mapping, each [tokens, text_dim] on the CPU.

    Loads the text encoder only if an embedding is missing, and frees it afterwards.
    """
    missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in into]
    encoder = TextEncoder(base, dtype=dtype, device=device) if missing else None
    for prompt in missing:
        assert encoder is not None
        into[prompt] = encoder(prompt).cpu()
