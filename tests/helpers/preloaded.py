"""Imports what the ranks of a gang import. The server of ``processes.run_gang`` imports this module once."""

from lynx_parallel.parallel import xdit
from lynx_parallel.rank import rank

__all__ = ["rank"]

xdit._import_xfuser("cpu")
