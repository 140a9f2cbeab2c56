"""The command line: one module per command. Importing this imports neither torch nor Ray."""

from lynx_parallel.cli.entry import app, main

__all__ = ["app", "main"]
