"""Graphics cards: their memory and their rate. Imports neither torch nor Ray."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from lynx_parallel.errors import InputErrors
from lynx_parallel.inputs.problems import nearest

_DRIVER = Path("/proc/driver/nvidia/gpus")


@dataclass(frozen=True)
class Card:
    """A graphics card.

    Attributes:
        tflops: 10¹² dense bf16 operations a second with fp32 accumulation, by the maker's data sheet.
        gigabytes: memory, 10⁹ bytes.
    """

    name: str
    tflops: float
    gigabytes: float


CARDS = (
    Card("B300", 2250, 288), Card("B200", 2250, 180), Card("GH200", 989, 96), Card("H200", 989, 141),
    Card("H100 PCIe", 756, 80), Card("H100 NVL", 835, 94), Card("H100", 989, 80), Card("H800", 989, 80),
    Card("H20", 148, 96), Card("A100 40GB", 312, 40), Card("A100", 312, 80), Card("A800", 312, 80),
    Card("L40S", 362, 48), Card("L40", 181, 48), Card("L20", 119, 48), Card("L4", 121, 24), Card("A40", 150, 48),
    Card("A10", 125, 24), Card("RTX 6000 Ada", 364, 48), Card("RTX A6000", 155, 48), Card("RTX 5090", 210, 32),
    Card("RTX 4090", 165, 24), Card("RTX 3090", 71, 24),
)  # fmt: skip
"""More specific names come first."""


def find_card(text: str) -> Card | None:
    """Returns the card of a name such as ``NVIDIA H100 80GB HBM3``, or None."""
    return next((card for card in CARDS if all(_has(text, word) for word in card.name.split())), None)


def named_card(text: str) -> Card:
    """Returns the card that an option names.

    Raises:
        InputErrors: an unknown card.
    """
    card = find_card(text)
    if card is None:
        raise InputErrors([f"--card {text}: no such card; {nearest(text, [card.name for card in CARDS], 'cards')}"])
    return card


def local_gpus() -> list[str]:
    """Returns the names of this machine's NVIDIA GPUs, by the driver's files; empty without the driver."""
    names = []
    try:
        for folder in sorted(_DRIVER.iterdir()):
            found = re.search(r"^Model:\s*(.+)$", (folder / "information").read_text(), re.MULTILINE)
            names.append(found[1].strip() if found else "an unknown GPU")
    except OSError:
        return []
    return names


def _has(text: str, word: str) -> bool:
    return re.search(rf"(?<![A-Za-z0-9]){re.escape(word)}(?![A-Za-z0-9])", text, re.IGNORECASE) is not None
