"""``--set``, ``--only`` and the cluster's options; the import stays light."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lynx_parallel.errors import InputErrors
from lynx_parallel.inputs.cluster import ClusterSpec
from tests.helpers.manifests import BOTH, HEAD, PROMPTS, Complain, Load

TEXT = HEAD + BOTH + PROMPTS


def test_set(load: Load, folder: Path) -> None:
    campaign = load(
        TEXT,
        overrides=["sampling.seed=7", "sampling.seed=8", "sampling.guidance_scale=1e0", "video.crf=3",
                   "sampling.negative_prompt=no: good", "output=else/where", "save_latents=no"],
    )  # fmt: skip
    shot = campaign.shots[0]
    assert (shot.seed, shot.sampling.guidance_scale, shot.sampling.negative_prompt) == (8, 1.0, "no: good")
    assert (campaign.pipeline.video.crf, campaign.pipeline.video.codec) == (3, "h264")
    assert campaign.output == folder / "else" / "where"
    assert campaign.save_latents is False
    assert load(TEXT).save_latents is True
    window = load(TEXT, overrides=["sampling.identity_window=[0, 0.8]"]).shots[0].sampling.identity_window
    assert window == (0.0, 0.8)
    assert load(TEXT, overrides=["sampling.guidance_scale_i=null"]).shots[0].sampling.guidance_scale_i is None


def test_set_leaves_listed_seeds_alone(load: Load) -> None:
    shots = "shots: [{subject: ada, prompt: run, seeds: [1, 2]}, {subject: bob, prompt: run, takes: 2}]\n"
    assert [s.seed for s in load(TEXT + shots, overrides=["sampling.seed=7"]).shots] == [1, 2, 7, 8]


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("x", "--set x: must be key=value, for example sampling.seed=7"),
        ("", "--set : must be key=value, for example sampling.seed=7"),
        ("sampling.seed=x", "--set sampling.seed=x: must be a whole number from 0 to 2^63-1"),
        ("sampling.seed=", "--set sampling.seed=: must be a value (leave the key out to keep the setting)"),
        ("sampling.width=yes", "--set sampling.width=yes: must be a multiple of 16 from 16 to 4096"),
        ("video.crf=1.5", "--set video.crf=1.5: must be a whole number from 0 to 51"),
        ("save_latents=2", "--set save_latents=2: must be true or false"),
        ("output= ", "--set output= : must be a folder"),
        ("output=m.yaml", "--set output=m.yaml: not a folder"),
        ("output=\udcff", "--set output=\\udcff: not UTF-8 text"),
        ("a\nb", "--set a\\nb: must be key=value, for example sampling.seed=7"),
    ],
)
def test_wrong_set(complain: Complain, option: str, said: str) -> None:
    assert complain(TEXT, overrides=[option]) == [said]


@pytest.mark.parametrize("key", ["model.base", "sampling", "sampling.sed", "name", "version", "video."])
def test_what_cannot_be_set(complain: Complain, key: str) -> None:
    (line,) = complain(TEXT, overrides=[f"{key}=1"])
    assert line.startswith(f"--set {key}=1: unknown setting; ")
    if key == "sampling.sed":
        assert "did you mean 'sampling.seed'?" in line


@pytest.mark.parametrize(
    ("only", "ids"),
    [
        (["ada/*"], ["ada/walk/1", "ada/run/1"]),
        (["*/run", "ada/*"], ["ada/walk/1", "ada/run/1", "bob/run/1"]),
        (["bob/run-t01"], ["bob/run/1"]),
        (["[ab]*/w?lk"], ["ada/walk/1", "bob/walk/1"]),
    ],
)
def test_only(load: Load, only: list[str], ids: list[str]) -> None:
    assert [s.id for s in load(TEXT, only=only).shots] == ids


def test_only_must_fit(complain: Complain) -> None:
    assert complain(TEXT, only=["ada/*", "ADA/*", "bob/runn"]) == [
        "--only 'ADA/*': fits no shot; did you mean 'ada/*'? (subject/prompt: ada/walk, ada/run, bob/walk, bob/run)",
        "--only 'bob/runn': fits no shot; did you mean 'bob/run'?"
        " (subject/prompt: ada/walk, ada/run, bob/walk, bob/run)",
    ]


@pytest.mark.parametrize("address", [None, "auto", "local", "10.0.0.1:6379", "[::1]:6379", "head:6379"])
def test_cluster(address: str | None) -> None:
    assert ClusterSpec(ulysses=2, device="cpu", address=address).address == address
    assert ClusterSpec().ulysses is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ulysses": 0}, "--ulysses 0: must be a whole number from 1"),
        ({"ulysses": True}, "--ulysses True: must be a whole number from 1"),
        ({"ulysses": 2.0}, "--ulysses 2.0: must be a whole number from 1"),
        ({"device": "gpu"}, "--device gpu: must be 'auto', 'cuda' or 'cpu'"),
        ({"address": ""}, "--address : must be auto, local or host:port"),
        ({"address": "head:6379\n"}, "--address head:6379\\n: must be auto, local or host:port"),
        (
            {"address": "ray://head:10001"},
            "--address ray://head:10001: Ray Client (ray://) is not supported: run on a machine of the cluster"
            " with --address auto, or submit with `ray job submit`",
        ),
    ],
)
def test_wrong_cluster(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputErrors) as caught:
        ClusterSpec(**options)
    assert caught.value.lines == [said]


def test_neither_torch_nor_ray_is_imported() -> None:
    code = (
        "import sys, lynx_parallel.inputs.load, lynx_parallel.inputs.cluster, lynx_parallel.inputs.pipeline_files as p;"
        "p.load_pipeline('lynx-full');"
        "print([m for m in ('torch', 'ray', 'diffusers', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
