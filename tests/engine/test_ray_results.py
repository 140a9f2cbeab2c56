"""What Ray says of a rank's end, as one line of ours."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayTaskError

from lynx_parallel.engine.ray_results import answer
from lynx_parallel.errors import RenderError
from lynx_parallel.text import first_line

OUT_OF_MEMORY = """1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 192.0.2.7, \
ID: c3e16d1996302991bcc1a101f0d391ca09fb582664d6955b57499b99) was 3.71GB used / 23.54GB limit (0.157650); threshold."""
TRACEBACK = """\x1b[36mray::Rank.__init__()\x1b[39m (pid=7)
  File "rank.py", line 3
ImportError: no such library
"""


def failed(error: Exception) -> RenderError:
    async def fails() -> Any:
        raise error

    with pytest.raises(RenderError) as raised:
        asyncio.run(answer(fails()))
    return raised.value


def test_lack_of_memory_is_one_short_line() -> None:
    error = failed(OutOfMemoryError(OUT_OF_MEMORY))
    assert str(error) == "out of host memory: Ray ended a rank when 192.0.2.7 used 3.71GB of 23.54GB"
    assert error.kind == "memory"
    assert str(failed(OutOfMemoryError("other words"))).startswith("out of host memory: ")


def test_a_rank_that_cannot_be_created_says_why() -> None:
    cause = RayTaskError("Rank.__init__", TRACEBACK, ImportError("no such library"))
    error = failed(ActorDiedError(cause))
    assert str(error) == "a rank could not be created: ImportError: no such library"
    assert error.kind == "died"
    assert str(failed(ActorDiedError())).startswith("ActorDiedError: The actor died unexpectedly")


def test_colours_are_no_part_of_a_reason() -> None:
    assert first_line(ValueError("\x1b[1m\x1b[31mred\x1b[0m and \x1b[36mblue\x1b[39m\nmore")) == "red and blue"
