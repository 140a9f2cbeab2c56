"""Saves a shot's resume state at intervals."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError

from lynx_parallel.errors import RenderError, Stopped
from lynx_parallel.output.atomic import set_aside
from lynx_parallel.rank.logs import write_log
from lynx_parallel.stages.denoise import Step
from lynx_parallel.stages.resume_state import save_resume_state

STATE_DAMAGED = "the resume state is damaged; the shot begins at its first step"
SAVING_SHARE = 0.02
"""Largest share of a shot's time that saving takes."""


def move_damaged(path: Path, reason: str) -> str:
    """Moves a damaged file to ``.lynx/damaged/``. Returns a line about it."""
    line = f"{path}: {reason}"
    with suppress(OSError):
        line += f"; moved to {set_aside(path, path.parent.parent / 'damaged')}"
    write_log(line)
    return line


class StateSaver:
    """Saves the resume state of the current shot at intervals, on a gang's rank 0.

    Args:
        digest: the shot's latents digest.
        every: least seconds between two saves. If saving takes long, more time passes.
        until: number of steps after which the state must be saved, because the shot is continued later; or None.
    """

    def __init__(self, path: Path, digest: str, every: float, until: int | None = None):
        self.path = path
        self.digest = digest
        self.every = every
        self.until = until
        self._saved, self._took = time.monotonic(), 0.0

    def after(self, step: Step, *, stop: bool) -> None:
        """Saves the state after a step, if it is time.

        Args:
            stop: whether the shot ends with this step.

        Raises:
            Stopped: the shot was to end.
            RenderError: the state had to be saved and could not be.
        """
        done = step.index + 1
        if done == self.until and not stop:
            if not self.save(step):
                raise RenderError(f"{self.path}: the resume state cannot be saved", "disk")
            return
        saved = (stop or (done < step.total and self.due())) and self.save(step)
        if stop:
            line = f"saved and stopped after step {done} of {step.total}"
            raise Stopped(line if saved else f"stopped after step {done} of {step.total}; its state could not be saved")

    def due(self) -> bool:
        """Returns whether it is time to save."""
        return time.monotonic() - self._saved >= max(self.every, self._took / SAVING_SHARE)

    def save(self, step: Step) -> bool:
        """Saves the state after a step. Returns False if it cannot be written; the shot continues."""
        began = time.monotonic()
        try:
            save_resume_state(self.path, step.state(), self.digest)
        except (OSError, SafetensorError) as error:
            write_log(f"the resume state cannot be saved: {error}")
            return False
        finally:
            self._saved = time.monotonic()
            self._took = self._saved - began
        return True
