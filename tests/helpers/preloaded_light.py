"""Imports what commands import that need neither torch nor Ray. Both servers of ``fork_server`` import this module."""

from __future__ import annotations

import gc
import importlib
import pkgutil

import ftfy
from PIL import Image

import lynx_parallel
from lynx_parallel.cli.entry import command_group

__all__ = ["ftfy"]

ROOMS = ("cli", "inputs", "output", "plan", "view")
ALSO = ("lynx_parallel.engine.campaign_run", "lynx_parallel.engine.driver")

for _room in ROOMS:
    for _module in pkgutil.walk_packages([f"{lynx_parallel.__path__[0]}/{_room}"], f"lynx_parallel.{_room}."):
        if not _module.name.endswith("__main__"):
            importlib.import_module(_module.name)
for _name in ALSO:
    importlib.import_module(_name)
command_group()
Image.init()
gc.freeze()  # a collection in a fork would otherwise copy every page of these modules
