"""Decodes saved latents to files: ``python -m lynx_parallel.rank.decoder DEVICE``, a child of ``lynx-render encode``.

The first line of its standard output names the device. Then each line of its standard input is an order, and each line
of its output the answer: a JSON object with ``error``, which is empty if the file was written.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

import torch

from lynx_parallel.errors import ClusterError, LynxError
from lynx_parallel.failures import is_out_of_memory
from lynx_parallel.inputs.formats import Format
from lynx_parallel.model.checkpoints import load_vae
from lynx_parallel.model.precision import VAE_PRECISIONS, use_ieee
from lynx_parallel.output.marks import Mark
from lynx_parallel.rank.environment import threads_here
from lynx_parallel.stages.formats import write_format
from lynx_parallel.stages.latents import decode, read_latents, to_frames
from lynx_parallel.text import in_words, one_line


class Decoder:
    """Decodes on one device. It keeps the VAE of the last order."""

    def __init__(self, device: torch.device):
        torch.set_num_threads(threads_here(1))  # as a rank has that is alone: other numbers round differently
        use_ieee()
        self._device = device
        self._loaded: tuple[str, str] | None = None
        self._vae: Any = None

    def write(self, order: Mapping[str, Any]) -> None:
        """Makes the file of one order: the same frames as the render's, in another format.

        Args:
            order: ``latents`` and their ``sha256``; folder of the ``vae``, ``vae_dtype`` and whether it is ``tiled``;
                ``format``, as of ``Format``, and ``fps``; the ``mark``, as of ``Mark``; the file ``out``.

        Raises:
            LynxError: the latents are damaged, the VAE cannot be loaded, or ffmpeg failed.
            OSError: a file cannot be read or written.
        """
        latents, _ = read_latents(Path(order["latents"]), order["sha256"])
        precision = VAE_PRECISIONS[order["vae_dtype"]]
        wanted = order["vae"], order["vae_dtype"]
        if self._loaded != wanted:
            self._vae, self._loaded = None, None  # frees its memory for the new one
            self._vae = load_vae(Path(order["vae"]), dtype=precision.weights, device=self._device)
            self._loaded = wanted
        if order["tiled"]:
            self._vae.enable_tiling()
        else:
            self._vae.disable_tiling()
        frames = to_frames(decode(self._vae, latents, precision=precision.convolutions))
        mark = Mark(**order["mark"])
        write_format(frames, Path(order["out"]), Format(**order["format"]), fps=order["fps"], mark=mark)


def device_of(name: str) -> torch.device:
    """Returns the device that ``--device`` names; ``auto`` is CUDA if it works.

    Raises:
        ClusterError: CUDA was asked for and does not work.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ClusterError("--device cuda: torch finds no CUDA device here")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def main(name: str, orders: TextIO, answers: TextIO) -> None:
    """Answers orders until their stream ends."""

    def say(**answer: str) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    try:
        device = device_of(name)
    except ClusterError as error:
        say(error=str(error))
        return
    decoder = Decoder(device)
    say(device="cpu" if device.type == "cpu" else torch.cuda.get_device_name(device))
    for line in orders:
        fault = ""
        try:
            decoder.write(json.loads(line))
        except (LynxError, OSError) as error:
            fault = one_line(in_words(error))
        except RuntimeError as error:  # of torch
            hint = "; --tiled-decode takes less memory" if is_out_of_memory(error) else ""
            fault = one_line(error) + hint
        say(error=fault)


if __name__ == "__main__":
    own = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to the log
    main(sys.argv[1], sys.stdin, own)
