"""lynx-parallel: sequence-parallel batch rendering of personalised video with Lynx on Wan2.1."""

# Imports nothing: ``python -m lynx_parallel.cli`` runs this before it can take the working folder off the module path.

__version__ = "0.1.0"

TYPE_CHECKING = False  # typing's own, which type checkers know by its name
if TYPE_CHECKING:
    from lynx_parallel.pipeline import LynxPipeline

__all__ = ["LynxPipeline", "__version__"]


def __getattr__(name: str) -> object:
    # The command line must answer --help and input errors without importing torch.
    if name == "LynxPipeline":
        from lynx_parallel.pipeline import LynxPipeline

        return LynxPipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
