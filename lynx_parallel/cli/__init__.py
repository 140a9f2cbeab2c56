"""The command line: one module per command. Importing this imports nothing else, so that Ctrl-C is answered soon."""

import os
import sys

if os.path.basename(sys.argv[0]) in ("-m", "lynx-render"):  # run as a program; before anything else is imported
    from lynx_parallel.engine.isolation import isolate

    isolate()

from lynx_parallel.cli.start import main

TYPE_CHECKING = False
if TYPE_CHECKING:
    from lynx_parallel.cli.entry import app

__all__ = ["app", "main"]


def __getattr__(name: str) -> object:
    if name == "app":
        from lynx_parallel.cli.entry import app

        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
