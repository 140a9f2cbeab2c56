"""Chooses the layout of each shot. Imports neither torch nor Ray."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from functools import cache
from math import prod

from lynx_parallel.errors import ClusterError, InputErrors
from lynx_parallel.inputs.base_parts import base_parts
from lynx_parallel.inputs.cluster import ClusterSpec
from lynx_parallel.inputs.decode_memory import SPATIAL_STRIDE, TEMPORAL_STRIDE, VideoSize
from lynx_parallel.inputs.guidance import sampling_coefficients
from lynx_parallel.inputs.layout import Layout, Needs, choose_layout
from lynx_parallel.inputs.manifest import Shot
from lynx_parallel.inputs.memory import Task
from lynx_parallel.inputs.model_config import transformer_config
from lynx_parallel.inputs.sampling import parse_blocks
from lynx_parallel.inputs.weight_files import WeightFiles


class LayoutChoice:
    """Chooses layouts for the shots of one campaign.

    Args:
        cluster: options. Degrees that the user has given apply to every shot.

    Raises:
        CheckpointError: the base has no readable transformer configuration.
    """

    def __init__(self, cluster: ClusterSpec, weights: WeightFiles):
        self._cluster = cluster
        self._config = transformer_config(weights)
        self._has_reference = weights.ref is not None
        self.experts = base_parts(weights.base).experts
        """Number of transformers of the base."""
        degrees = cluster.guidance, cluster.ring, cluster.ulysses
        self._best = cache(choose_layout)
        self.asked = Layout(*(degree or 1 for degree in degrees)) if any(degrees) else None

    def needs(self, shot: Shot) -> Needs:
        """Returns what a shot requires of a layout."""
        branches = sampling_coefficients(shot.sampling, has_reference=self._has_reference)
        return Needs(heads=self._config["num_attention_heads"], tokens=prod(self._grid(shot)), branches=len(branches))

    def _grid(self, shot: Shot) -> tuple[int, int, int]:
        """Patches of a shot's latents along frames, height and width."""
        sampling, (pt, ph, pw) = shot.sampling, self._config["patch_size"]
        frames = (sampling.num_frames - 1) // TEMPORAL_STRIDE + 1
        height, width = sampling.height // SPATIAL_STRIDE, sampling.width // SPATIAL_STRIDE
        return frames // pt, height // ph, width // pw

    def mistakes(self, shots: Iterable[Shot]) -> list[str]:
        """Returns one line for each way in which the model or the layout asked for does not fit, with a shot's name."""
        lines: dict[str, str] = {}
        checked: dict[int, Shot] = {}  # shots of the same settings share one object
        for shot in shots:
            checked.setdefault(id(shot.sampling), shot)
        for shot in checked.values():
            for line in self._mistakes(shot):
                lines.setdefault(line, shot.name)
        return [f"{line} ({name})" for line, name in lines.items()]

    def check(self, shots: Iterable[Shot]) -> None:
        """Checks that the model and the requested layout fit every shot.

        Raises:
            InputErrors: the lines of ``mistakes``.
        """
        if lines := self.mistakes(shots):
            raise InputErrors(lines)

    def count_mistakes(self) -> list[str]:
        """Returns what is wrong with ``--gangs`` and ``--max-gpus`` on any cluster. On CPUs the latter is ignored."""
        most = self._cluster.max_gpus
        if most is None or self._cluster.device != "cuda":
            return []
        try:
            self.gangs(self.asked.size if self.asked else 1, "cuda", most, 1)
        except InputErrors as error:
            return error.lines
        return []

    def _mistakes(self, shot: Shot) -> Iterator[str]:
        blocks, layers = parse_blocks(shot.sampling.ref_blocks), self._config["num_layers"]
        if blocks is not None and max(blocks) >= layers:
            yield f"sampling.ref_blocks {shot.sampling.ref_blocks!r}: the model has blocks 0 to {layers - 1}"
        most = self._config["rope_max_seq_len"]
        sizes = ("num_frames", "height", "width")
        for name, patches in zip(sizes, self._grid(shot), strict=True):
            if patches > most:
                value = getattr(shot.sampling, name)
                yield f"sampling.{name} {value}: {patches} positions, the model has {most} (rope_max_seq_len)"
        if self.asked is not None:
            try:
                self.asked.check(self.needs(shot))
            except InputErrors as error:
                yield from error.lines

    def ranks(self, device: str, available: int) -> int:
        """Ranks a shot gets: as many as asked for, else one on CUDA and min(2, cores) on the CPU.

        Args:
            device: ``cuda`` or ``cpu``.
            available: ranks that the cluster can hold.

        Raises:
            InputErrors: more ranks are requested than exist.
            ClusterError: no rank is available.
        """
        if self.asked is not None:
            if self.asked.size > available:
                unit = "GPUs" if device == "cuda" else "ranks on its CPUs"
                raise InputErrors(
                    [f"{self.asked}: needs {self.asked.size} ranks, the cluster has room for {available} {unit}"]
                )
            return self.asked.size
        if available < 1:
            reason = (
                "no GPU found. Use --device cpu, or run lynx-render doctor" if device == "cuda" else "no CPU is free"
            )
            raise ClusterError(f"--device {device}: {reason}.")
        return 1 if device == "cuda" else min(2, os.cpu_count() or 1, available)

    def layout(self, shot: Shot, ranks: int, breaks: tuple[int, ...] = ()) -> Layout:
        """Returns a shot's layout: the requested one, else the best that fits into ``ranks`` ranks.

        Args:
            breaks: indexes of the ranks at which the next machine begins.
        """
        return self.asked or self._best(self.needs(shot), ranks, breaks)

    def task(self, shot: Shot, ranks: int) -> Task:
        """Returns a shot's size and layout, for the prediction of its memory."""
        sampling = shot.sampling
        return Task(VideoSize(sampling.width, sampling.height, sampling.num_frames), self.layout(shot, ranks))

    def most(self, device: str, available: int) -> int:
        """Ranks to use at most."""
        return min(available, self._cluster.max_gpus or available) if device == "cuda" else available

    def gangs(self, size: int, device: str, available: int, shots: int) -> int:
        """Returns how many gangs of ``size`` ranks work at the same time.

        As many as requested. By default one on the CPU, because it uses all cores, and as many as the GPUs allow.

        Raises:
            InputErrors: more gangs are requested than have room.
        """
        most = self.most(device, available)
        if (asked := self._cluster.gangs) is not None and asked * size > most:
            raise InputErrors([f"--gangs {asked}: needs {asked * size} ranks, the cluster has {most}"])
        if size > most:
            raise InputErrors([f"--max-gpus {most}: a shot needs {size}"])
        return min(asked or (most // size if device == "cuda" else 1), shots)
