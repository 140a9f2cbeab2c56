"""Shares the prompt embeddings of a campaign: one gang makes them, all gangs read them. Imports no torch and no Ray."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from lynx_parallel.inputs.manifest import Shot
from lynx_parallel.inputs.sampling import REFERENCE_PROMPT
from lynx_parallel.output.prompt_files import PromptFiles

if TYPE_CHECKING:
    from lynx_parallel.engine.gang import Gang

LOOK_EVERY_S = 1.0
STALLED_S = 300.0
"""Seconds without a new embedding after which another gang encodes the missing ones."""


class SharedTexts:
    """The texts of all shots, and which gang encodes them.

    Attributes:
        files: where the embeddings are stored.

    Args:
        shots: those to render; without any, no text is needed.
    """

    def __init__(self, files: PromptFiles, shots: Iterable[Shot]):
        self.files = files
        texts = [text for shot in shots for text in (shot.text, shot.sampling.negative_prompt)]
        self._texts = list(dict.fromkeys([*texts, REFERENCE_PROMPT])) if texts else []
        self._claimed = False

    def add(self, shots: Iterable[Shot]) -> None:
        """Adds the texts of shots that are to be rendered after all."""
        more = SharedTexts(self.files, shots)._texts
        self._texts = list(dict.fromkeys([*self._texts, *more]))

    @contextlib.contextmanager
    def claimed(self) -> Iterator[list[str]]:
        """Yields the texts to encode: those that are missing, or none while another gang encodes them."""
        if self._claimed or not (missing := self._missing()):
            yield []
            return
        self._claimed = True
        try:
            yield missing
        finally:
            self._claimed = False

    async def ready(self, gang: Gang, stopping: Callable[[], bool]) -> None:
        """Returns once all texts are encoded or ``stopping()`` is true. The gang encodes them if no other gang does.

        Raises:
            RenderError: the gang's rank failed.
        """
        left, waited = len(self._missing()), 0.0
        while self._claimed and left and waited < STALLED_S and not stopping():
            await asyncio.sleep(LOOK_EVERY_S)
            before, left = left, len(self._missing())
            waited = waited + LOOK_EVERY_S if left == before else 0.0
        if left and not stopping():
            self._claimed = True
            try:
                await gang.encode_prompts(self._missing())
            finally:
                self._claimed = False

    def _missing(self) -> list[str]:
        self._texts = self.files.missing(self._texts)  # encoded texts need not be looked for again
        return self._texts
