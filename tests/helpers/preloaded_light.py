"""Imports the command line, and neither torch nor Ray. The light server of ``fork_server`` imports this module once."""

from __future__ import annotations

import gc
import importlib
import pkgutil
import sys

import lynx_parallel.cli
from tests.helpers.fork_server import HEAVY

ALSO = ("lynx_parallel.engine.campaign_run", "lynx_parallel.engine.driver", "lynx_parallel.view.report")
"""Modules that commands import when they need them."""

for _module in pkgutil.iter_modules(lynx_parallel.cli.__path__, "lynx_parallel.cli."):
    if not _module.name.endswith("__main__"):
        importlib.import_module(_module.name)
for _name in ALSO:
    importlib.import_module(_name)
assert not [name for name in HEAVY if name in sys.modules]
gc.freeze()  # a collection in a fork would otherwise copy every page of these modules
