"""Saves a shot's resume state at intervals."""

from __future__ import annotations

import time
from pathlib import Path

from safetensors import SafetensorError

from lynx_parallel.rank.logs import write_log
from lynx_parallel.stages.denoise import Step
from lynx_parallel.stages.resume_state import save_resume_state

SAVING_SHARE = 0.02
"""Largest share of a shot's time that saving takes."""


class StateSaver:
    """Saves the resume state of the current shot at intervals, on a gang's rank 0.

    Args:
        digest: the shot's latents digest.
        every: least seconds between two saves. If saving takes long, more time passes.
    """

    def __init__(self, path: Path, digest: str, every: float):
        self.path = path
        self.digest = digest
        self.every = every
        self._saved, self._took = time.monotonic(), 0.0

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
