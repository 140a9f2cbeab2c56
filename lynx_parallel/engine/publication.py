"""Publishes what an attempt has made: the shot, a candidate that is not good enough, or the preview of an audition."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lynx_parallel.engine.run import Run
from lynx_parallel.engine.sidecar import make_sidecar
from lynx_parallel.inputs.early_scores import Pair, record_pair
from lynx_parallel.output.atomic import publish
from lynx_parallel.output.auditions import AuditionRecord, read_audition, write_audition
from lynx_parallel.output.candidates import candidate_name
from lynx_parallel.output.finished_latents import read_record, unpublished_path
from lynx_parallel.output.journal import now
from lynx_parallel.output.scores import ShotScores, write_scores
from lynx_parallel.plan.plan import Item
from lynx_parallel.rank.messages import Rendered

if TYPE_CHECKING:
    from lynx_parallel.engine.gate import Gate


def publish_made(
    run: Run,
    item: Item,
    made: Rendered,
    parts: Mapping[str, Path],
    *,
    number: int,
    seconds: float,
    ranks: Mapping[str, Any],
    gate: Gate | None,
) -> bool:
    """Publishes the files of an attempt.

    Args:
        parts: where ``video``, ``poster`` and, after a render, ``latents`` are.
        number: of the attempt; ``seconds`` that it took.
        ranks: arguments of ``made_by``.
        gate: that the video must pass to become the shot.

    Returns:
        Whether the video is now that of the shot.

    Raises:
        InputErrors: the file of takes cannot be read.
        OSError: the files could not be published.
    """
    if item.action == "audition":
        _publish_preview(run, item, made, parts)
        return False
    output, name, encodes = run.output, item.shot.name, item.action == "encode"
    quality = None if gate is None or made.score is None else gate.record(made.score, item.shot.seed)
    kept = quality is None or quality["passed"]
    target = name if kept else candidate_name(name, item.shot.seed)
    latents = (item.latents or output.path(name, "latents")) if encodes else unpublished_path(output, name)
    in_place = encodes and latents == output.path(target, "latents")
    kinds = ("video",) if in_place or not run.campaign.save_latents else ("video", "latents")
    named = ("video", "latents") if in_place else kinds
    before = None
    if encodes:
        before = read_record(output, name) if item.latents else output.sidecar(name)
    sidecar = make_sidecar(
        item, run.campaign.pipeline.model, made,
        {kind: {"file": output.path(target, kind).name, **made.outputs[kind]} for kind in named},
        **ranks, attempt=number, seconds=seconds, before=before, run=run.name, packaging=run.packaging,
        site=run.campaign.site.digest,
    )  # fmt: skip
    if quality is not None:
        sidecar["quality"] = quality
    if kept and item.stale:
        output.supersede(name, ("video", "sidecar", *(() if in_place else ("latents",))))
    if kept and gate is not None:
        gate.bind(item.shot.seed)
    if made.score is not None:
        scores = {made.score.recognizer: made.score}
        write_scores(output.scores(target), ShotScores(made.outputs["video"]["sha256"], scores))
    output.commit(target, kinds, sidecar, {**parts, "latents": latents})
    _compare_with_preview(run, item, made)
    return kept


def _compare_with_preview(run: Run, item: Item, made: Rendered) -> None:
    """Records how the score of a take's preview foretold that of its video."""
    record = read_audition(run.output.audition(item.shot.name), item.digests.resume)
    if record is None or made.score is None or record.similarity is None or made.score.mean is None:
        return
    if record.score.recognizer == made.score.recognizer:
        record_pair(
            Pair(
                made.score.recognizer, run.campaign.pipeline.model.base, record.step, record.total, record.similarity,
                made.score.mean, item.digests.latents,
            )
        )  # fmt: skip


def _publish_preview(run: Run, item: Item, made: Rendered, parts: Mapping[str, Path]) -> None:
    output, name = run.output, item.shot.name
    assert made.score is not None
    publish(parts["video"], output.preview(name))
    with contextlib.suppress(OSError):  # a report can do without
        os.replace(parts["poster"], output.poster(name))
    record = AuditionRecord(
        item.digests.resume, item.shot.seed, made.steps, item.shot.sampling.num_inference_steps, made.score,
        made.outputs["video"]["sha256"], now(),
    )  # fmt: skip
    write_audition(output.audition(name), record)  # from now on, the preview counts
