"""Imports what a driver and its ranks import. The heavy server of ``fork_server`` imports this module once."""

# ruff: noqa: E402
import atexit
import gc
import importlib
import weakref

gc.disable()

import ray
from diffusers import UniPCMultistepScheduler
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from lynx_parallel.engine import supervisor
from lynx_parallel.parallel import xdit
from lynx_parallel.rank import rank
from tests.helpers import preloaded_light
from tests.helpers.small_convolutions import use_onednn

__all__ = ["preloaded_light", "rank", "supervisor"]

LATER = (
    "distvae.modules.adapters.vae.decoder_adapters", "ffmpeg", "imageio_ffmpeg", "lynx_parallel.engine.cluster",
    "lynx_parallel.engine.metrics", "safetensors.numpy",
)  # fmt: skip
"""Modules that drivers and ranks import when they need them."""

xdit._import_xfuser("cpu")
for _name in LATER:
    importlib.import_module(_name)
_ = UniPCMultistepScheduler().compatibles  # its modules, which ``from_config`` imports
get_checkpoint_conversion_mapping("")  # compiles a thousand patterns
use_onednn()

# At the end of each fork, they would take 70 ms.
atexit.unregister(ray.shutdown)
weakref.finalize._registry.clear()  # type: ignore[attr-defined]

gc.freeze()  # a collection in a fork would otherwise copy every page of these modules
gc.enable()
