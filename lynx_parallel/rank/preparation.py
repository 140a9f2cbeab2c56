"""Prepares a shot: its subject, from the cache or from its photograph, its prompt and its noise."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import torch

from lynx_parallel.errors import RenderError, SubjectError
from lynx_parallel.inputs.manifest import Shot
from lynx_parallel.output.crops import Crops
from lynx_parallel.pipeline import LynxPipeline, ShotInputs
from lynx_parallel.subject.cache import SubjectCache
from lynx_parallel.subject.person import Person
from lynx_parallel.subject.picture import read_picture
from lynx_parallel.subject.stored_person import from_arrays, to_arrays


def _read_first_frame(path: Path) -> np.ndarray:
    """Returns the picture with which a video begins. If it cannot be read, the subject is not at fault."""
    try:
        return read_picture(path)
    except SubjectError as error:
        raise RenderError(str(error)) from None


def _identify(pipeline: LynxPipeline, shot: Shot) -> Person:
    subject = shot.subject
    return pipeline.identify(
        shot.sampling, image=subject.image, landmarks=subject.landmarks, embedding=subject.embedding,
        face=subject.face,  # type: ignore[arg-type]
    )  # fmt: skip


class Preparation:
    """Makes the inputs of shots, on a gang's rank 0.

    Attributes:
        from_cache: whether the last shot's subject was found in the cache.
        warnings: of the last shot.
    """

    def __init__(self) -> None:
        self.from_cache = False
        self.warnings: list[str] = []
        self._subjects = SubjectCache(warn=lambda line: self.warnings.append(line))
        self._said: set[str] = set()
        self._faces = threading.Lock()  # the detectors are used by one thread at a time
        self._ahead: tuple[str, Person | None] = ("", None)

    def make(self, pipeline: LynxPipeline, shot: Shot, key: str, crops: Crops) -> ShotInputs:
        """Returns a shot's inputs. Raises the errors of ``Rank.prepare``.

        Writes the crops first. If the subject cannot be used, its crops are removed, because they would show an earlier
        picture.
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
        first = None if shot.start_image is None else _read_first_frame(shot.start_image)
        return pipeline.prepare(shot.text, shot.sampling, person, latents, first)

    def look_ahead(self, pipeline: LynxPipeline, shot: Shot, key: str) -> None:
        """Finds the face of a later shot's subject, unless the cache has it. Runs beside the current shot.

        It does not encode the reference crop: the VAE keeps state while it decodes, and its precision is a switch of
        the whole process.
        """
        with self._faces:
            if self._ahead[0] != key and self._subjects.get(key) is None:
                self._ahead = key, _identify(pipeline, shot)

    def _person(self, pipeline: LynxPipeline, shot: Shot, key: str, output: Path) -> tuple[Person, torch.Tensor | None]:
        """Returns the subject's person, and its reference latents or None for lite."""
        subject, arrays = shot.subject, self._subjects.get(key)
        stored = None if arrays is None else from_arrays(arrays)
        self.from_cache = stored is not None
        if stored is not None:
            self._subjects.refer(key, subject=subject.id, output=output)
            person, latents = stored
            return person, None if latents is None else torch.from_numpy(latents)
        with self._faces:  # look_ahead may have just begun to find this face
            known, ahead = self._ahead
            person = ahead if ahead is not None and known == key else _identify(pipeline, shot)
        encoded = (
            None if person.ref_crop is None else pipeline.inputs.reference_latents(person.ref_crop, shot.sampling).cpu()
        )
        if person.warning:  # not cached, so that every run repeats the warning
            self.warnings.append(f"{subject.id}: {person.warning}")
        else:
            found = to_arrays(person, None if encoded is None else encoded.numpy())
            self._subjects.put(key, found, subject=subject.id, output=output)
        return person, encoded
