"""Builds the sidecar of a shot: its settings, its files, and how they were made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import lynx_parallel
from lynx_parallel.inputs.layout import Layout
from lynx_parallel.inputs.pipeline import ModelSpec
from lynx_parallel.output.journal import now
from lynx_parallel.plan.plan import Item

if TYPE_CHECKING:
    from lynx_parallel.rank.messages import Hello, Rendered

_OF_THE_LATENTS = ("layout", "ranks", "attention", "sharded", "conditioning")
"""Keys that an encoding of saved latents copies from the sidecar of their render."""


def made_by(layout: Layout, ranks: Sequence[Hello], *, sharded: bool) -> dict[str, Any]:
    """Returns the part of a sidecar about the ranks that made the latents. Arguments as in ``make_sidecar``."""
    return {
        "layout": {"guidance": layout.guidance, "ring": layout.ring, "ulysses": layout.ulysses},
        "ranks": [
            {"rank": rank, "pid": hello.pid, "host": hello.host, "device": hello.device}
            for rank, hello in enumerate(ranks)
        ],
        "attention": ranks[0].attention,
        "sharded": sharded,
    }


def make_sidecar(
    item: Item,
    model: ModelSpec,
    made: Rendered,
    outputs: Mapping[str, Any],
    *,
    layout: Layout,
    ranks: Sequence[Hello],
    sharded: bool,
    attempt: int,
    seconds: float,
    before: Mapping[str, Any] | None = None,
    run: str = "",
    packaging: Mapping[str, str] = {},
    site: str = "",
) -> dict[str, Any]:
    """Returns the content of a sidecar without its version, which ``Output.commit`` adds with the outputs' times.

    Args:
        outputs: file, size and sha256 by kind.
        ranks: that made it, rank 0 first.
        seconds: of the whole attempt.
        run: name of the run's record, see ``lynx_parallel.inputs.records``.
        site: digest of the site file; empty without one.
        packaging: how the weights files are packed, by ``inputs.packaging``.
        before: the sidecar of the render, or the result of ``made_by``, if only its latents were encoded now.
    """
    shot, subject, consent = item.shot, item.shot.subject, item.shot.subject.consent
    sidecar = {
        "name": shot.name,
        "shot": {
            "subject": subject.id,
            "prompt": shot.prompt.id,
            "take": shot.take,
            "seed": shot.seed,
            **({"variant": shot.variant} if shot.variant else {}),
        },
        "digests": {"latents": item.digests.latents, "video": item.digests.video},
        "outputs": dict(outputs),
        "settings": dict(item.digests.settings),
        "encoding": dict(item.digests.encoding),
        "model": model.model_dump(),
        "packaging": dict(packaging),
        "labels": subject.labels,
        "consent": consent and {"ref": consent.ref, "scope": consent.scope, "expires": str(consent.expires or "")},
        **made_by(layout, ranks, sharded=sharded),
        "attempt": attempt,
        "seconds": {**made.seconds, "total": round(seconds, 3)},
        "exactness": made.exactness | ({} if model.vae_dtype == "float32" else {"vae": model.vae_dtype}),
        "conditioning": made.conditioning,
        "warnings": [*item.warnings, *made.warnings],
        "finished": now(),
        "run": run,
        **({"site": site} if site else {}),
        "lynx_parallel": lynx_parallel.__version__,
    }
    return sidecar | {name: before[name] for name in _OF_THE_LATENTS if before and name in before}
