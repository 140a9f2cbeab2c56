"""A person in the cache: the same after a round trip, and a miss if its fields have changed since."""

from __future__ import annotations

import numpy as np
import pytest

from lynx_parallel.subject import stored_person
from lynx_parallel.subject.person import Person
from lynx_parallel.subject.stored_person import from_arrays, to_arrays

PERSON = Person(np.ones(512, np.float32), landmarks=np.zeros((5, 2)), ref_crop=np.zeros((256, 256, 3), np.uint8))
LATENTS = np.ones((1, 16, 1, 32, 32), np.float32)


@pytest.mark.parametrize("latents", [LATENTS, None])
def test_the_same_person(latents: np.ndarray | None) -> None:
    found = from_arrays(to_arrays(PERSON, latents))
    assert found is not None
    person, again = found
    assert again is latents
    assert person.id_crop is None
    for name in ("embedding", "landmarks", "ref_crop"):
        assert np.array_equal(getattr(person, name), getattr(PERSON, name))


def test_an_entry_of_version_0_1_0() -> None:
    arrays = to_arrays(PERSON, LATENTS)
    del arrays["schema"]
    assert from_arrays(arrays) is not None


def test_an_entry_of_another_schema_is_a_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = to_arrays(PERSON, LATENTS)
    monkeypatch.setattr(stored_person, "SCHEMA", 2)
    assert from_arrays(arrays) is None


def test_a_renamed_field_is_a_miss() -> None:
    arrays = to_arrays(PERSON, LATENTS)
    arrays["face_embedding"] = arrays.pop("embedding")
    assert from_arrays(arrays) is None
    assert from_arrays({**to_arrays(PERSON, LATENTS), "age": np.array(40)}) is None
