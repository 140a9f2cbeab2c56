"""The Ray actor of a rank. It imports no torch, so the driver can import it. The worker imports the rank's code.

An exception of a library becomes a RenderError here. Otherwise the driver would import torch to unpickle it.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from lynx_parallel.errors import LynxError
from lynx_parallel.failures import as_render_error
from lynx_parallel.inputs.layout import Layout
from lynx_parallel.inputs.manifest import Shot
from lynx_parallel.rank.messages import Check, EncodeOrder, Hello, Progress, RankConfig, Rendered, RenderOrder


class RankActor:
    """One method for each method of ``rank.rank.Rank`` that the driver calls. ``Rank`` describes them.

    ``progress`` and ``stop`` run in the concurrency group ``ctl``, so they answer while ``render`` blocks. ``finish``
    and ``prepare_ahead`` have a thread each, in which they run beside ``render``.
    """

    def __init__(self, device: str, sharing: int, config: RankConfig):
        gc.disable()  # the imports make a million objects that stay, and no garbage
        from lynx_parallel.rank.rank import Rank

        gc.freeze()
        gc.enable()
        self._rank = Rank(device, sharing, config)

    def hello(self) -> Hello:
        return self._call("hello")

    @ray.method(concurrency_group="ctl")
    def progress(self) -> Progress:
        return self._call("progress")

    @ray.method(concurrency_group="ctl")
    def stop(self) -> None:
        return self._call("stop")

    def misses(self, probe: Path, needed: Sequence[Path]) -> list[str]:
        return self._call("misses", probe, needed)

    def check(self, output: Path) -> list[Check]:
        return self._call("check", output)

    def encode_prompts(self, prompts: list[str]) -> None:
        return self._call("encode_prompts", prompts)

    def load(self) -> None:
        return self._call("load")

    def open_store(self) -> tuple[str, int]:
        return self._call("open_store")

    def join(self, layout: Layout, rank: int, store: tuple[str, int]) -> list[Check]:
        return self._call("join", layout, rank, store)

    def leave(self) -> None:
        return self._call("leave")

    def prepare(self, order: RenderOrder) -> int:
        return self._call("prepare", order)

    def holds_one_expert(self) -> bool:
        return self._call("holds_one_expert")

    def render(self, order: RenderOrder) -> bool:
        return self._call("render", order)

    @ray.method(concurrency_group="finish")
    def finish(self, order: RenderOrder) -> Rendered:
        return self._call("finish", order)

    @ray.method(concurrency_group="ahead")
    def prepare_ahead(self, shot: Shot, subject_key: str) -> None:
        return self._call("prepare_ahead", shot, subject_key)

    def encode(self, order: EncodeOrder) -> Rendered:
        return self._call("encode", order)

    def _call(self, method: str, *arguments: Any) -> Any:
        try:
            return getattr(self._rank, method)(*arguments)
        except LynxError:
            raise
        except Exception as error:
            raise as_render_error(error) from error
