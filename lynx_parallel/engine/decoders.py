"""Child processes that decode latents, because the command itself never imports torch."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lynx_parallel.engine.crew import Crew
from lynx_parallel.errors import ClusterError
from lynx_parallel.text import shown_path


class DecoderProcess:
    """A process of ``rank.decoder``. It starts with the first order, and again after it has died.

    Args:
        device: as of ``--device``.
        gpu: for ``CUDA_VISIBLE_DEVICES``; None leaves the choice to ``device``.
        log: file for what it prints.
    """

    def __init__(self, crew: Crew, device: str, gpu: str | None, log: Path):
        self._crew = crew
        self._device = device
        self._gpu = gpu
        self._log = log
        self._process: subprocess.Popen[str] | None = None

    def ask(self, order: Mapping[str, Any]) -> str:
        """Carries out an order of ``rank.decoder``. Returns why it failed, or nothing.

        Raises:
            ClusterError: the device does not work.
            Ended: the crew was told to end.
        """
        try:
            if self._process is None:
                self._start()
            return str(self._answer(order)["error"])
        except _Died as died:
            self._process = None
            return f"the decoding process {died} (log: {shown_path(self._log)})"

    def _start(self) -> None:
        hidden = "" if self._device == "cpu" else self._gpu
        environment = {**os.environ, **({} if hidden is None else {"CUDA_VISIBLE_DEVICES": hidden})}
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("wb") as log:
            self._process = self._crew.start(
                [sys.executable, "-m", "lynx_parallel.rank.decoder", self._device],
                env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip
        if error := self._read().get("error"):
            raise ClusterError(error)

    def _answer(self, order: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process is not None
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has died: reading tells how
            print(json.dumps(order), file=self._process.stdin, flush=True)
        return self._read()

    def _read(self) -> dict[str, Any]:
        """Returns the next line of the process. Raises _Died if there is none."""
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return dict(json.loads(line))
        status = self._crew.wait(self._process)
        raise _Died(f"was killed by signal {-status}" if status < 0 else f"ended with status {status}")


class _Died(Exception):
    """The process has ended by itself; says how."""
