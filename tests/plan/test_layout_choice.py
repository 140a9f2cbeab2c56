"""The layout of a shot, and the lines about layouts that do not fit the model or the cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from lynx_parallel.errors import ClusterError, InputErrors
from lynx_parallel.inputs.cluster import ClusterSpec
from lynx_parallel.inputs.decode_memory import VideoSize
from lynx_parallel.inputs.layout import Layout, Needs, choose_layout
from lynx_parallel.inputs.load import load_campaign
from lynx_parallel.inputs.manifest import Shot
from lynx_parallel.inputs.memory import Task
from lynx_parallel.inputs.weight_files import WeightFiles
from lynx_parallel.plan.layout_choice import LayoutChoice

DEMO = Needs(heads=4, tokens=36, branches=3)
REAL = Needs(heads=40, tokens=32_760, branches=3)


@pytest.mark.parametrize(
    ("layout", "needs", "line"),
    [
        (Layout(ulysses=3), DEMO, "--ulysses 3: does not divide the model's 4 attention heads; one of 1, 2, 4"),
        (Layout(guidance=3), Needs(4, 36, 2), "--guidance 3: the shot has 2 guidance branches; at most that"),
        (
            Layout(ring=4, ulysses=4),
            DEMO,
            None,  # 3 tokens a rank, 12 ranks with tokens: four with nothing but padding
        ),
        (Layout(ring=8), Needs(4, 10, 3), None),
        (Layout(ulysses=16), REAL, "--ulysses 16: does not divide the model's 40 attention heads; one of 1, 2, 4, 5"),
    ],
)
def test_what_does_not_fit(layout: Layout, needs: Needs, line: str | None) -> None:
    with pytest.raises(InputErrors) as caught:
        layout.check(needs)
    assert str(caught.value).startswith(line or "--ring")
    assert line or "would leave a rank with nothing but padding" in str(caught.value)
    assert len(caught.value.lines) == 1


@pytest.mark.parametrize(
    "layout", [Layout(), Layout(2, 2, 2), Layout(3, 1, 8), Layout(1, 7, 1), Layout(1, 4, 8), Layout(1, 1, 40)], ids=str
)
def test_what_fits_the_real_model(layout: Layout) -> None:
    layout.check(REAL)


def test_auto_never_picks_what_does_not_fit() -> None:
    for heads in (1, 3, 4, 7, 40):
        for tokens in (1, 2, 3, 5, 12, 27, 36):
            for branches in (1, 2, 3):
                for ranks in range(1, 9):
                    needs = Needs(heads, tokens, branches)
                    layout = choose_layout(needs, ranks)
                    layout.check(needs)
                    assert layout.size <= ranks
    assert choose_layout(DEMO, 2) == Layout(ulysses=2)
    assert choose_layout(Needs(3, 36, 3), 2) == Layout(guidance=2)
    assert choose_layout(REAL, 8) == Layout(ulysses=8)


@pytest.fixture
def shots(campaign: Path) -> tuple[Shot, ...]:
    return load_campaign(campaign).shots


def files(demo: Path) -> WeightFiles:
    full = demo / "full"
    return WeightFiles(
        demo / "wan", full / "resampler.safetensors", full / "ip_layers.safetensors", full / "ref.safetensors"
    )


def test_needs_of_a_shot(demo: Path, shots: tuple[Shot, ...]) -> None:
    assert LayoutChoice(ClusterSpec(), files(demo)).needs(shots[0]) == DEMO


def test_what_memory_is_predicted_from(demo: Path, shots: tuple[Shot, ...]) -> None:
    task = LayoutChoice(ClusterSpec(), files(demo)).task(shots[0], 4)
    assert task == Task(VideoSize(64, 48, 9), Layout(ulysses=4))
    assert task.size.tokens == DEMO.tokens


def test_shots_of_other_sizes_get_other_layouts(demo: Path, campaign: Path) -> None:
    campaign.write_text(
        campaign.read_text().replace(
            "beach: A", "beach:\n    sampling: {width: 16, height: 16, num_frames: 1}\n    text: A"
        )
    )
    shots = load_campaign(campaign).shots
    layouts = LayoutChoice(ClusterSpec(), files(demo))
    by_prompt = {shot.prompt.id: layouts.layout(shot, 2) for shot in shots}
    assert by_prompt["pumpkin"].size == 2
    assert by_prompt["beach"] == Layout(guidance=2)  # one token cannot be split, its branches can


def test_ranks_of_a_shot(demo: Path, shots: tuple[Shot, ...]) -> None:
    chosen, asked = LayoutChoice(ClusterSpec(), files(demo)), LayoutChoice(ClusterSpec(ring=2, guidance=3), files(demo))
    assert (chosen.ranks("cuda", 8), chosen.ranks("cpu", 1), asked.ranks("cuda", 8)) == (1, 1, 6)
    assert chosen.layout(shots[0], 4) == Layout(ulysses=4)
    assert asked.layout(shots[0], 1) == asked.asked == Layout(guidance=3, ring=2)


def test_more_ranks_than_there_are(demo: Path) -> None:
    with pytest.raises(InputErrors, match=r"^Ulysses 4: needs 4 ranks, the cluster has room for 2 GPUs$"):
        LayoutChoice(ClusterSpec(ulysses=4), files(demo)).ranks("cuda", 2)
    with pytest.raises(
        ClusterError, match=r"^--device cuda: no GPU found. Use --device cpu, or run lynx-render doctor.$"
    ):
        LayoutChoice(ClusterSpec(), files(demo)).ranks("cuda", 0)


def test_blocks_the_model_does_not_have(demo: Path, campaign: Path) -> None:
    shots = load_campaign(campaign, ["sampling.ref_blocks=0-5"]).shots
    line = r"^sampling.ref_blocks '0-5': the model has blocks 0 to 2 \(astronaut/pumpkin-t01\)$"
    with pytest.raises(InputErrors, match=line):
        LayoutChoice(ClusterSpec(), files(demo)).check(shots)


@pytest.mark.parametrize(
    ("ranks", "breaks", "layout"),
    [
        (8, (), Layout(ulysses=8)),
        (8, (4,), Layout(ring=2, ulysses=4)),  # two machines of four GPUs
        (16, (8,), Layout(ring=2, ulysses=8)),
        (8, (2, 4, 6), Layout(ring=4, ulysses=2)),
        (6, (4,), Layout(ring=3, ulysses=2)),  # four and two
        (3, (1, 2), Layout(ring=3)),
        (4, (4,), Layout(ulysses=4)),  # the second machine is not needed
        (7, (4,), Layout(ring=7)),
    ],
    ids=str,
)
def test_a_ring_goes_across_machines_and_ulysses_stays_within(
    ranks: int, breaks: tuple[int, ...], layout: Layout
) -> None:
    chosen = choose_layout(REAL, ranks, breaks)
    assert chosen == layout
    assert not chosen.splits_ulysses(breaks)


def test_a_layout_asked_for_by_hand_may_split_ulysses() -> None:
    assert Layout(ulysses=8).splits_ulysses((4,))
    assert Layout(ring=2, ulysses=4).splits_ulysses((2, 4, 6))
    assert not Layout(2, 1, 4).splits_ulysses((4,))
