"""Where the posters of a report are, and how many frames they have. Imports neither torch nor Ray."""

from __future__ import annotations

POSTERS = "report"
"""Folder of the posters, beside ``REPORT``."""
REPORT = "report.html"
POSTER_SUFFIX = ".jpg"
POSTER_FRAMES = 8
"""Frames of a video that its poster shows side by side."""
POSTER_SIDE = 256
"""Most pixels of a side of each of these frames."""
