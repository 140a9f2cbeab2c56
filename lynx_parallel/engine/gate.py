"""The gate: renders a shot again with other seeds until its video looks enough like the subject.

Every attempt has a seed of its own, which follows from the shot's seed and the number of the attempt. A video that is
not good enough becomes a candidate, see ``output.candidates``. So any later run knows what was tried.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lynx_parallel.inputs.manifest import Campaign, Shot
from lynx_parallel.inputs.quality import Quality
from lynx_parallel.output.candidates import (
    Candidate,
    choose,
    chosen_candidate,
    has_candidates,
    make_shot,
    read_candidate,
)
from lynx_parallel.output.finished_latents import find_latents
from lynx_parallel.output.folder import Output
from lynx_parallel.output.journal import Journal, now
from lynx_parallel.output.scores import IdentityScore
from lynx_parallel.output.takes import Past, Take, changing
from lynx_parallel.output.withheld import withheld_reason
from lynx_parallel.plan.attempts import attempt_shots
from lynx_parallel.plan.digests import shot_digests
from lynx_parallel.plan.parts import Part
from lynx_parallel.plan.plan import Item


def is_gated(campaign: Campaign, item: Item) -> bool:
    """Returns whether a shot must pass the gate. Encoding a finished shot again does not change its latents."""
    if campaign.quality is None or not campaign.quality.attempts or item.shot.subject.image is None:
        return False
    return item.action == "render" or (item.action == "encode" and item.latents is not None)


@dataclass(frozen=True)
class Attempted:
    """One attempt of the gate.

    Attributes:
        item: the shot with the attempt's seed.
        candidate: None if the attempt is not made.
        withheld: whether the safety checker withheld it.
    """

    item: Item
    candidate: Candidate | None = None
    withheld: bool = False


class Gate:
    """The gate of one shot.

    Args:
        item: the shot as it was planned.
        weights: of ``plan.hashing.weight_digests``.

    Raises:
        InputErrors: the subject's files cannot be read.
    """

    def __init__(self, campaign: Campaign, output: Output, item: Item, weights: Mapping[str, str]):
        assert campaign.quality is not None
        self.quality: Quality = campaign.quality
        self._output = output
        self._planned = item
        self._safety = campaign.site.safety
        others = attempt_shots(campaign, item.shot)[1:]
        self.items = [
            item,
            *(
                replace(
                    item, shot=shot, digests=shot_digests(campaign, shot, weights), action="render", latents=None,
                    reason="", share=1.0,
                )
                for shot in others
            ),
        ]  # fmt: skip

    def attempts(self) -> list[Attempted]:
        """Returns all attempts, as the output folder shows them."""
        name = self._planned.shot.name
        return [
            Attempted(
                item, read_candidate(self._output, name, item.shot.seed, item.digests.video), self._is_withheld(item)
            )
            for item in self.items
        ]

    def _is_withheld(self, item: Item) -> bool:
        safety = self._safety
        return safety is not None and bool(withheld_reason(self._output, item.digests.latents, lambda: safety.digest))

    def number(self, seed: int) -> int:
        """Returns the number of the attempt with this seed, from 1."""
        return 1 + next(index for index, item in enumerate(self.items) if item.shot.seed == seed)

    def passes(self, score: IdentityScore) -> bool:
        """Returns whether a video is good enough. A video without a face never is."""
        return score.mean is not None and score.mean >= self.quality.min_identity

    def next(self) -> Item | Candidate | None:
        """Returns what follows: the attempt to make next, the candidate that becomes the shot, or None.

        None means that all attempts were withheld. An attempt whose latents are finished, because a run was killed, is
        only encoded.
        """
        following = next_of(self.attempts(), self.quality)
        if not isinstance(following, Item) or following is self._planned:
            return following
        name = self._planned.shot.name
        latents = find_latents(self._output, name, following.digests.latents_digests, published=False)
        return following if latents is None else replace(following, action="encode", latents=latents)

    def record(self, score: IdentityScore, seed: int) -> dict[str, Any]:
        """Returns the sidecar's ``quality``."""
        return {
            "recognizer": score.recognizer, "scale": score.scale, "min_identity": self.quality.min_identity,
            "attempt": self.number(seed), "attempts": self.quality.attempts, "state": score.state, "mean": score.mean,
            "worst": score.worst, "with_face": score.with_face, "drift": score.drift, "passed": self.passes(score),
        }  # fmt: skip

    def bind(self, seed: int) -> None:
        """Records that the take has this seed from now on, so that the next plan finds the shot done."""
        tried = [one.item.shot.seed for one in self.attempts() if one.candidate is not None]
        bind_seed(self._output, self._planned.shot, seed, tried)

    def keep(self, candidate: Candidate) -> None:
        """Makes a candidate the shot, and its seed that of the take. A repeated call completes it.

        Raises:
            InputErrors, OSError: the file of takes or the output folder cannot be written.
        """
        candidate = choose(self._output, candidate)
        self.bind(candidate.seed)
        make_shot(self._output, candidate)


def next_of(attempts: Sequence[Attempted], quality: Quality) -> Item | Candidate | None:
    """Returns the attempt to make next, or the candidate to keep. None if all attempts were withheld.

    A candidate that is good enough, because the manifest now asks for less, is kept. Once all attempts are made, the
    best candidate is kept; the earlier one wins a tie.
    """
    made = [one.candidate for one in attempts if one.candidate is not None]
    best = max(made, key=lambda one: (one.similarity is not None, one.similarity or 0.0), default=None)
    if best is not None and best.similarity is not None and best.similarity >= quality.min_identity:
        return best
    return next((one.item for one in attempts if one.candidate is None and not one.withheld), best)


def bind_seed(output: Output, shot: Shot, seed: int, tried: Sequence[int]) -> None:
    """Writes the seed of a take to the file of takes. Does nothing if the take has this seed.

    Args:
        tried: seeds of the attempts that were made, in order. The others than ``seed`` become the take's history.

    Raises:
        InputErrors, OSError: the file of takes cannot be read or written.
    """
    if seed == shot.seed:
        return
    time = now()
    with changing(output.takes) as takes:
        subject, prompt, variant = shot.takes_of
        own = takes.get((subject, prompt, variant, shot.take))
        history = own.history if own is not None else shot.history
        known = {past.seed for past in history}
        earlier = [Past(one, "", time) for one in tried if one != seed and one not in known]
        takes[(subject, prompt, variant, shot.take)] = Take(
            subject, prompt, shot.take, seed, variant, "", time, shot.given_seed, (*history, *earlier)
        )


def record_kept(journal: Journal, candidate: Candidate) -> None:
    """Records in the journal that a candidate has become its shot."""
    journal.append(
        "done", name=candidate.name, attempt=candidate.sidecar.get("attempt"), seed=candidate.seed,
        video=candidate.sidecar["digests"]["video"], kept=True,
    )  # fmt: skip


def keep_candidates(parts: Sequence[Part], todo: Sequence[Item], output: Output, journal: Journal) -> int:
    """Makes candidates their shots where nothing is left to render, or where a killed driver began to do so.

    Returns:
        How many.

    Raises:
        InputErrors, OSError: as ``Gate.keep``.
    """
    if not (output.private / "candidates").is_dir():
        return 0
    kept = 0
    for part in parts:
        for item in part.of(todo):
            name = item.shot.name
            chosen = chosen_candidate(output, name)
            if chosen is None and not (is_gated(part.campaign, item) and has_candidates(output, name)):
                continue
            gate = Gate(part.campaign, output, item, part.digests)
            following = chosen or gate.next()
            if isinstance(following, Candidate):
                gate.keep(following)
                record_kept(journal, following)
                kept += 1
    return kept
