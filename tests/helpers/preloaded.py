"""Imports what a driver and its ranks import. The server of ``processes.server_context`` imports this module once."""

# ruff: noqa: E402
import gc

gc.disable()

from lynx_parallel.cli import entry
from lynx_parallel.engine import campaign_run, driver, supervisor
from lynx_parallel.parallel import xdit
from lynx_parallel.rank import rank

__all__ = ["campaign_run", "driver", "entry", "rank", "supervisor"]

xdit._import_xfuser("cpu")

gc.freeze()  # a collection in a fork would otherwise copy every page of these modules
gc.enable()
