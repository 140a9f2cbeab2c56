"""Cleans prompts as Wan's pipeline does. Imports neither torch nor diffusers."""

from __future__ import annotations

import html
import re

MAX_TOKENS = 512
"""Tokens of a prompt. Longer prompts are cut. Shorter ones are zero-padded, and the model attends to the zeros."""


def clean_prompt(text: str) -> str:
    """Returns a prompt as the text encoder gets it.

    Repairs wrongly decoded characters (ftfy), resolves HTML entities twice, turns each run of white space into one
    space, and strips both ends. The same as ``diffusers.pipelines.wan.pipeline_wan.prompt_clean`` with ftfy installed;
    that module imports torch.
    """
    import ftfy

    fixed = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", fixed.strip()).strip()
