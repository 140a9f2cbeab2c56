"""The text that the model sees of a prompt. Imports neither torch nor diffusers."""

from __future__ import annotations

import html
import re

MAX_TOKENS = 512
"""Wan's text length: longer prompts are cut, shorter ones zero-padded, and the zeros are attended."""


def clean_prompt(text: str) -> str:
    """Returns a prompt as the text encoder gets it.

    Repairs wrongly decoded characters (ftfy), resolves HTML entities twice, turns each run of white space into one
    space, and strips both ends. The same as ``diffusers.pipelines.wan.pipeline_wan.prompt_clean`` with ftfy installed;
    that module imports torch.
    """
    import ftfy

    fixed = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", fixed.strip()).strip()
