"""The command line: one module per command. Importing this imports nothing else, so that Ctrl-C is answered soon."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lynx_parallel.cli.interrupt import main

if TYPE_CHECKING:
    from lynx_parallel.cli.entry import app

__all__ = ["app", "main"]


def __getattr__(name: str) -> Any:
    if name == "app":
        from lynx_parallel.cli.entry import app

        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
