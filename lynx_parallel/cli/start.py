"""Entry point of the program: isolates it, handles signals, then imports and runs the command."""

from __future__ import annotations

import os
import sys

from lynx_parallel.cli.interrupt import end_process, exit_code, handled, interrupt, received, report
from lynx_parallel.engine.isolation import isolate


def main() -> None:
    """Runs ``lynx-render``.

    Importing the commands takes a second. A signal during that time ends the process at once.
    """
    isolate()
    with handled() as set_handler:
        set_handler(end_process)
        from lynx_parallel.engine.process import leave, open_streams

        open_streams()
        from lynx_parallel.cli.entry import run

        set_handler(interrupt)
        try:
            code = run(sys.argv[1:])
        except BaseException:  # also an error of a library that was interrupted
            if not received:
                raise
            code = exit_code()
        if received:
            code = exit_code()
            set_handler(lambda number, _: os._exit(128 + number))  # a second signal
            report(received[0])
    leave(code)
