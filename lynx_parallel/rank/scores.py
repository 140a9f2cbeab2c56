"""Scores the videos that a rank has just encoded."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

from lynx_parallel.inputs.recognizers import Recognizer
from lynx_parallel.rank.messages import EncodeOrder, Rendered, RenderOrder
from lynx_parallel.stages.score import Scorer


class Scores:
    """Scores videos with the recognisers that orders name. Loads each recogniser once."""

    def __init__(self) -> None:
        self._scorers: dict[Recognizer, Scorer] = {}
        self._one = threading.Lock()  # a scorer is used by one thread at a time

    def add(self, made: Rendered, order: RenderOrder | EncodeOrder) -> Rendered:
        """Returns what was made with the score of its video, if the order asks for one.

        Raises:
            LynxError: as ``Scorer`` and ``Scorer.score``.
        """
        wanted = order.score
        if wanted is None:
            return made
        began = time.perf_counter()
        with self._one:
            if wanted.recognizer not in self._scorers:
                self._scorers[wanted.recognizer] = Scorer(wanted.recognizer)
            score = self._scorers[wanted.recognizer].score(
                order.parts["video"], wanted.picture, face=wanted.face, landmarks=wanted.landmarks, frames=wanted.frames
            )
        seconds = {**made.seconds, "score": round(time.perf_counter() - began, 3)}
        return replace(made, score=score, seconds=seconds)
