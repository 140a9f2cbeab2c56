"""What a shot starts from: its subject, from the cache or from its photograph, its prompt and its noise."""

from __future__ import annotations

from pathlib import Path

import torch

from lynx_parallel.errors import SubjectError
from lynx_parallel.inputs.manifest import Shot
from lynx_parallel.output.crops import Crops
from lynx_parallel.pipeline import LynxPipeline, ShotInputs
from lynx_parallel.subject.cache import SubjectCache
from lynx_parallel.subject.person import Person


class Preparation:
    """Makes what shots start from, on a gang's rank 0.

    Attributes:
        from_cache: whether the last shot's subject was found in the cache.
        warnings: of the last shot.
    """

    def __init__(self) -> None:
        self.from_cache = False
        self.warnings: list[str] = []
        self._subjects = SubjectCache(warn=lambda line: self.warnings.append(line))
        self._said: set[str] = set()

    def make(self, pipeline: LynxPipeline, shot: Shot, key: str, crops: Crops) -> ShotInputs:
        """A shot's inputs; arguments and errors as of ``Rank.prepare``.

        The crops are shown before anything else can fail. Those of a subject that cannot be used are removed: they
        would show an earlier picture.
        """
        self.warnings = []
        try:
            person, latents = self._person(pipeline, shot, key, crops.output)
        except SubjectError:
            crops.remove()
            raise
        if (warning := crops.show(person.id_crop, person.ref_crop)) and warning not in self._said:
            self._said.add(warning)
            self.warnings.append(warning)
        return pipeline.prepare(shot.text, shot.sampling, person, latents)

    def _person(self, pipeline: LynxPipeline, shot: Shot, key: str, output: Path) -> tuple[Person, torch.Tensor | None]:
        """The subject's person and reference latents, the latter None for lite."""
        subject = shot.subject
        arrays = self._subjects.get(key)
        self.from_cache = arrays is not None
        if arrays is not None:
            self._subjects.refer(key, subject=subject.id, output=output)
            latents = arrays.pop("reference_latents", None)
            person = Person(**arrays)  # type: ignore[arg-type]
            return person, None if latents is None else torch.from_numpy(latents)
        person = pipeline.identify(
            shot.sampling, image=subject.image, landmarks=subject.landmarks, embedding=subject.embedding,
            face=subject.face,  # type: ignore[arg-type]
        )  # fmt: skip
        if person.warning:
            self.warnings.append(f"{subject.id}: {person.warning}")
        encoded = None if person.ref_crop is None else pipeline.reference_latents(shot.sampling, person).cpu()
        made = {
            "embedding": person.embedding,
            "landmarks": person.landmarks,
            "id_crop": person.id_crop,
            "ref_crop": person.ref_crop,
            "reference_latents": None if encoded is None else encoded.numpy(),
        }
        if person.warning is None:  # a guess is made, and told, anew in every run
            found = {name: array for name, array in made.items() if array is not None}
            self._subjects.put(key, found, subject=subject.id, output=output)
        return person, encoded
