"""What the starter of gangs asks of every machine."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

from lynx_parallel.engine.starter import GangStarter
from lynx_parallel.inputs.manifest import Subject
from lynx_parallel.inputs.weight_files import LoraFile, WeightFiles
from lynx_parallel.output.folder import Output


def test_every_weights_file_and_the_first_picture_must_be_visible(tmp_path: Path) -> None:
    names = (
        "base",
        "resampler",
        "id",
        "ref",
        "transformer",
        "transformer-2",
        "lora-1",
        "lora-2",
        "ada.jpg",
        "start.png",
    )
    base, resampler, id_, ref, transformer, low, first, second, picture, start = (tmp_path / name for name in names)
    for path in (tmp_path / name for name in names):
        path.touch()
    weights = WeightFiles(
        base,
        resampler,
        id_,
        ref,
        transformer=transformer,
        transformer_2=low,
        loras=(LoraFile(first, 1.0), LoraFile(second, 0.5)),
    )
    run = SimpleNamespace(weights=weights, face=None, output=Output(tmp_path / "out"))
    shot = SimpleNamespace(subject=Subject("ada", image=picture, embedding=tmp_path / "missing.npy"), start_image=start)
    starter = GangStarter(SimpleNamespace(run=run, runs=[run], shots=[shot]), None)  # type: ignore[arg-type]
    run.output.private.mkdir(parents=True)
    assert {path.name for path in starter._needed_files()} == {*names, ".lynx"}
