"""lynx-parallel: sequence-parallel batch rendering of personalised video with Lynx on Wan2.1."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from lynx_parallel.pipeline import LynxPipeline

__all__ = ["LynxPipeline", "__version__"]


def __getattr__(name: str) -> Any:
    # The command line must answer --help and input errors without importing torch.
    if name == "LynxPipeline":
        from lynx_parallel.pipeline import LynxPipeline

        return LynxPipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
