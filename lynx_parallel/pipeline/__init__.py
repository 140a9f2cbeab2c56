"""LynxPipeline: one subject, one prompt, one video, in this process. For notebooks and for ranks."""

from lynx_parallel.pipeline.notebook import LynxPipeline
from lynx_parallel.stages.conditioning import ShotInputs
from lynx_parallel.stages.rendered import LynxOutput

__all__ = ["LynxOutput", "LynxPipeline", "ShotInputs"]
