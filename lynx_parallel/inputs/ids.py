"""Makes ids from file names and texts."""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from pathlib import Path

from lynx_parallel.inputs.entries import ID
from lynx_parallel.inputs.template import template_words

_MAX_ID = 100
_MAX_WORDS = 40
_MAX_START = 200  # characters of a text in which words for its id are looked for
_EARLIER_ID = re.compile(r"p-[0-9a-f]{8}", re.ASCII)
# Letters that Unicode does not decompose into an ASCII letter and marks. Fixed: an id names output files.
_LETTERS = str.maketrans(
    {"ß": "ss", "ẞ": "SS", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "ø": "o", "Ø": "O", "ł": "l", "Ł": "L",
     "đ": "d", "Đ": "D", "ð": "d", "Ð": "D", "þ": "th", "Þ": "Th", "ı": "i", "ħ": "h", "Ħ": "H", "ŋ": "n", "Ŋ": "N"}
)  # fmt: skip


def digits(text: str) -> str:
    """Returns eight hex digits of the text's sha256."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:8]


def _plain(text: str) -> str:
    """Returns the text with letters in their ASCII form, if they have one."""
    if text.isascii():
        return text
    decomposed = unicodedata.normalize("NFKD", text.translate(_LETTERS))
    return "".join(c for c in decomposed if not unicodedata.combining(c))


def made_id(name: str) -> str:
    """Returns the name itself if it is an id, else an id made from it: ``Porträt Nr 3`` gives ``Portrat-Nr-3``.

    Letters lose their marks, and other characters become ``-``. Letters without an ASCII form are left out, and a long
    name is cut; eight hex digits of the name's sha256 then follow.
    """
    if ID.fullmatch(name):
        return name
    name = unicodedata.normalize("NFC", name)  # macOS stores file names decomposed
    plain = _plain(name)
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip("-._")
    if not slug or len(slug) > _MAX_ID or any(c.isalnum() and not c.isascii() for c in plain):
        slug = f"{slug[: _MAX_ID - 9].rstrip('-._')}-{digits(name)}".lstrip("-")
    return slug


def free_id(name: str, taken: set[str]) -> str:
    """Returns an id made from a name that no other id has, and adds it to the others.

    Args:
        taken: ids in lower case.
    """
    made = made_id(name)
    if made.casefold().endswith(".part"):  # marks unfinished files in an output folder
        made = f"{made[:-5]}-part"
    free, number = made, 2
    while free.casefold() in taken:
        suffix = f"-{number}"
        free, number = made[: _MAX_ID - len(suffix)] + suffix, number + 1
    taken.add(free.casefold())
    return free


def first_words(text: str) -> str:
    """Returns the first words of a valid template, in lower case and joined by ``-``; empty without ASCII letters."""
    slug = ""
    for word in re.findall(r"[a-z0-9]+", _plain(template_words(text)[:_MAX_START]).lower()):
        if len(slug) + len(word) > _MAX_WORDS:
            break
        slug += word + "-"
    return slug.rstrip("-")


def prompt_id(text: str) -> str:
    """Returns the id of a prompt that has none: its first words, then eight hex digits of the text's sha256.

    The same text always gives the same id, whatever other prompts there are.
    """
    return f"{first_words(text) or 'p'}-{digits(text)}"


def earlier_prompt_id(text: str) -> str:
    """Returns the id that version 0.1 gave a prompt that has none."""
    return "p-" + digits(text)


def earlier_prompt_ids(output: Path) -> frozenset[str]:
    """Returns the ids by ``earlier_prompt_id`` that stand in the names of finished shots of an output folder."""
    found: set[str] = set()
    top = os.path.join(output, "")
    for folder, folders, names in os.walk(output):
        if folder == str(output) and ".lynx" in folders:
            folders.remove(".lynx")
        for name in names:
            if name.endswith(".json"):
                found.update(_EARLIER_ID.findall(os.path.join(folder, name).removeprefix(top)))
    return frozenset(found)
