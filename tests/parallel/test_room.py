"""Which cards keep idle projections: hollow files of the 14B's true shapes, whose headers alone are read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator

import pytest

from lynx_parallel.inputs.decode_memory import VideoSize
from lynx_parallel.inputs.layout import Layout
from lynx_parallel.inputs.memory import Prediction, Task
from lynx_parallel.inputs.weight_files import WeightFiles
from lynx_parallel.parallel.room import MARGIN, fits, room_for
from tests.helpers.adapters_14b import RECORDED, Adapters, derived, recorded, write_adapters, write_base

P480, P720 = VideoSize(832, 480, 81), VideoSize(1280, 720, 81)
GB = 10**9


@pytest.fixture(scope="module", params=["F32", "BF16"])
def weights(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WeightFiles]:
    """Lynx full; the base as it is published (fp32), and converted to bf16."""
    folder = tmp_path_factory.mktemp("hollow")
    write_base(folder, request.param)
    yield write_adapters(folder, full())
    shutil.rmtree(folder)  # sparse files take no room here, but a copy of the folder would


def full() -> Adapters:
    return (recorded() if RECORDED.exists() else derived())["full, reference"]


CARDS = (24, 40, 48, 80, 141)


@pytest.mark.parametrize(
    ("layout", "size", "sharded", "smallest"),
    [
        (Layout(), P480, False, 80),
        (Layout(), P720, False, 80),
        (Layout(ulysses=2), P480, False, 80),
        (Layout(ulysses=2), P480, True, 40),
        (Layout(ulysses=8), P480, True, 24),
        (Layout(guidance=3), P480, True, 80),  # guidance ranks share no weights
    ],
    ids=str,
)
def test_cards_that_keep_them_in_bf16(
    layout: Layout, size: VideoSize, sharded: bool, smallest: int, weights: WeightFiles
) -> None:
    """The type of the files does not matter: an 80 GB card keeps them although the fp32 files fill 65.6 GB."""
    tasks = [Task(size, layout)]
    kept = [card for card in CARDS if room_for(weights, card * GB, dtype="bfloat16", sharded=sharded,
                                               tasks=tasks).keep_projections]  # fmt: skip
    assert kept == [card for card in CARDS if card >= smallest]


def test_the_fullest_task_decides(weights: WeightFiles) -> None:
    def kept(*tasks: Task) -> bool:
        return room_for(weights, 60 * GB, dtype="bfloat16", sharded=False, tasks=tasks).keep_projections

    small, large = Task(P480, Layout()), Task(P720, Layout())
    assert kept(small)
    assert not kept(large)
    assert not kept(small, large)
    assert not kept()  # where nothing is known, the largest video counts


def test_fp32_and_tiles_count(weights: WeightFiles) -> None:
    def kept(card: int, dtype: str, *, tiled: bool) -> bool:
        return room_for(weights, card * GB, dtype=dtype, sharded=False, tiled_decode=tiled).keep_projections

    assert not kept(80, "float32", tiled=True)
    assert kept(141, "float32", tiled=False)
    assert kept(60, "bfloat16", tiled=True)
    assert not kept(60, "bfloat16", tiled=False)


def test_tf32_needs_more_room(weights: WeightFiles) -> None:
    def kept(tf32: bool) -> bool:
        task = Task(P720, Layout())
        return room_for(
            weights, 65 * GB, dtype="bfloat16", sharded=False, tf32_decode=tf32, tasks=[task]
        ).keep_projections

    assert kept(False)
    assert not kept(True)


def test_two_experts(weights: WeightFiles) -> None:
    """Wan2.2 A14B with Lynx full: both experts while they fit, then one at a time."""
    index = weights.base / "model_index.json"
    parts = {"transformer_2": ["diffusers", "WanTransformer3DModel"], "boundary_ratio": 0.875}
    index.write_text(json.dumps({"_class_name": "WanPipeline", **parts}))
    try:
        found = {
            card: tuple(room_for(weights, card * GB, dtype="bfloat16", sharded=False, tasks=[Task(P480, Layout())]))
            for card in (48, 64, 80, 141)
        }
        sharded = room_for(weights, 80 * GB, dtype="bfloat16", sharded=True, tasks=[Task(P480, Layout(ulysses=8))])
    finally:
        index.unlink()
    assert found == {48: (False, True), 64: (True, True), 80: (False, False), 141: (True, False)}
    assert sharded == (True, False)


def test_a_margin_stays_free() -> None:
    made = Prediction(*[10 * GB] * 11)
    assert fits(made, round(made.total / (1 - MARGIN)) + 1)
    assert not fits(made, round(made.total / (1 - MARGIN)) - 10)
