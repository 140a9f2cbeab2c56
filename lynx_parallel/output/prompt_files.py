"""Files of prompt embeddings. Imports neither torch nor Ray."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from lynx_parallel.output.checksums import digest


class PromptFiles(NamedTuple):
    """Files of prompt embeddings, one per text.

    Attributes:
        salt: digest of all that an embedding depends on beside the text.
    """

    folder: Path
    salt: str

    def path(self, text: str) -> Path:
        """Returns the file of one text's embedding, which may not exist yet."""
        return self.folder / f"{digest([self.salt, text])}.safetensors"

    def missing(self, texts: Iterable[str]) -> list[str]:
        """Returns the texts that have no embedding yet."""
        return [text for text in dict.fromkeys(texts) if not self.path(text).exists()]
