"""The variable that runs the GPU tests on the CPU."""

from __future__ import annotations

DRY_RUN = "LYNX_GPU_DRY_RUN"
