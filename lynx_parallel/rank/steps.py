"""What follows each step of a shot on a rank: progress, a line in its log, the resume state, the prediction."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from lynx_parallel.rank.logs import write_log
from lynx_parallel.rank.pulse import Pulse
from lynx_parallel.rank.resume_states import StateSaver
from lynx_parallel.stages.denoise import Step


class Steps:
    """Follows the steps of one shot.

    Args:
        done: steps that its resume state has done.
        total: steps to make.
        stop: returns whether the shot ends after the current step.
        saver: of its resume state; None on other ranks than rank 0.
        predict_at: step after which the predicted x0 is kept, for an audition; None for none.

    Attributes:
        predicted: [1, 16, T, h, w] fp32, of ``predict_at``; None before.
    """

    def __init__(
        self,
        pulse: Pulse,
        done: int,
        total: int,
        stop: Callable[[], bool],
        saver: StateSaver | None = None,
        predict_at: int | None = None,
    ):
        self.predicted: torch.Tensor | None = None
        self._pulse = pulse
        self._total = total
        self._stop = stop
        self._saver = saver
        self._predict_at = predict_at
        pulse.begin(done, total)
        if done:
            write_log(f"resuming at step {done + 1}")

    def after(self, step: Step) -> None:
        """Records a step.

        Raises:
            Stopped, RenderError: as ``StateSaver.after`` and ``Pulse.step``.
        """
        done = step.index + 1
        self._pulse.step(done, self._total)
        write_log(f"{time.strftime('%H:%M:%S')} step {done}/{step.total}")
        if done == self._predict_at:
            self.predicted = step.predicted_x0()
        if self._saver is not None:
            self._saver.after(step, stop=self._stop())
