"""Pieces of small manifests."""

from __future__ import annotations

from collections.abc import Callable

from lynx_parallel.inputs.manifest import Campaign

LITE = """\
version: 1
model:
  base: demo:tiny
  adapters: {resampler: demo:lite, id: demo:lite}
sampling: {width: 64, height: 48, num_frames: 9, guidance_scale_i: null}
"""


HEAD = """\
version: 1
pipeline: lite.yaml
output: out
"""


ADA = "subjects: {ada: {embedding: faces/ada.npy, vars: {person: woman}}}\n"


BOTH = (
    "subjects: {ada: {embedding: faces/ada.npy, vars: {person: woman}},"
    " bob: {embedding: faces/bob.npy, vars: {person: man}}}\n"
)


PROMPTS = "prompts: {walk: 'A {person} walks.', run: 'A {person} runs.'}\n"


Load = Callable[..., Campaign]


Complain = Callable[..., list[str]]
