"""Names of graphics cards."""

from __future__ import annotations

from pathlib import Path

import pytest

from lynx_parallel.errors import InputErrors
from lynx_parallel.inputs import cards
from lynx_parallel.inputs.cards import CARDS, find_card, local_gpus, named_card


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("NVIDIA H200", "H200"), ("NVIDIA H100 80GB HBM3", "H100"), ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA GH200 480GB", "GH200"), ("NVIDIA A100-SXM4-80GB", "A100"), ("NVIDIA A100-SXM4-40GB", "A100 40GB"),
        ("NVIDIA L40S", "L40S"), ("NVIDIA L4", "L4"), ("NVIDIA GeForce RTX 4090", "RTX 4090"), ("h100", "H100"),
        ("NVIDIA A10", "A10"), ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"), ("NVIDIA H20", "H20"),
    ],
)  # fmt: skip
def test_a_card_by_its_name(text: str, name: str) -> None:
    card = find_card(text)
    assert card is not None
    assert card.name == name


def test_every_card_is_found_by_its_own_name() -> None:
    assert [find_card(card.name) for card in CARDS] == list(CARDS)


def test_an_unknown_card() -> None:
    assert find_card("NVIDIA Tesla V100") is None
    assert find_card("NVIDIA L400") is find_card("NVIDIA GH2000") is None, "not a beginning of a name"
    with pytest.raises(InputErrors, match="--card H10: no such card; did you mean"):
        named_card("H10")


def test_the_gpus_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cards, "_DRIVER", tmp_path / "none")
    assert local_gpus() == []
    for number in range(2):
        folder = tmp_path / "gpus" / f"0000:0{number}:00.0"
        folder.mkdir(parents=True)
        (folder / "information").write_text("Model: \t\t NVIDIA H200\nIRQ:   \t\t 17\n")
    monkeypatch.setattr(cards, "_DRIVER", tmp_path / "gpus")
    assert local_gpus() == ["NVIDIA H200", "NVIDIA H200"]
