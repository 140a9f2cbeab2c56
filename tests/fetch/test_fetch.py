"""``lynx-render fetch`` as a user meets it, against a small hub on the loopback interface."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import campaigns as small
from tests.helpers.fork_server import python
from tests.helpers.hub import COMMIT, Hub, serve, sha256

# Larger than the chunks of 10 MiB in which huggingface_hub reads: what arrives of a chunk cut off is not written.
LARGE = os.urandom(1 << 20) * 24
CUT = 11 << 20
ARCFACE = "arcface.pth"
PIPELINE = f"""\
version: 1
model:
  base: org/base
  adapters: {{resampler: hub:org/base/lynx/resampler.safetensors, id: hub:org/base/lynx/ip_layers.safetensors}}
face: {{detector: buffalo_l, recognizer: arcface_ir_se50, recognizer_sha256: {sha256(LARGE)}}}
"""

# Runs the command with the face models' addresses replaced; says at the end which heavy packages it has imported.
COMMAND = """\
import atexit, sys
import lynx_parallel.fetch.fetch as fetch
fetch.PACK_URL, fetch.ARCFACE_URL = sys.argv.pop(1), sys.argv.pop(1)
heavy = ("torch", "ray", "diffusers", "transformers")
atexit.register(lambda: open("imported", "w").write(" ".join(m for m in heavy if m in sys.modules)))
from lynx_parallel.cli import main
main()
"""


class User:
    """A home folder of its own, in which the command is run."""

    def __init__(self, folder: Path, hub: Hub):
        self.folder = folder
        self.hub = hub
        (folder / "p.yaml").write_text(PIPELINE)
        self.blobs = folder / "hf" / "hub" / "models--org--base" / "blobs"
        self.pack = folder / ".insightface" / "models" / "buffalo_l"
        self.arcface = folder / "cache" / "recognition_arcface_ir_se50.pth"

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        unset = ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HTTP_PROXY", "http_proxy")
        environment = {key: value for key, value in os.environ.items() if key not in unset}
        environment |= {
            "HOME": str(self.folder), "HF_HOME": str(self.folder / "hf"), "HF_ENDPOINT": self.hub.url,
            "LYNX_CACHE": str(self.folder / "cache"),
        }  # fmt: skip
        faces = [f"{self.hub.url}/files/{name}" for name in ("buffalo_l.zip", ARCFACE)]
        return subprocess.Popen(
            [python("light"), "-c", COMMAND, *faces, *arguments],
            cwd=self.folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, *arguments: str, code: int = 0) -> tuple[list[str], list[str]]:
        """Lines of stdout and of stderr, without the last one of an error, which names the help."""
        with self.start(*(arguments or ("fetch", "p.yaml"))) as process:
            out, err = process.communicate(timeout=60)
        assert process.returncode == code, (out, err)
        assert "Traceback" not in err
        lines = err.splitlines()
        if code in (2, 3):
            assert lines.pop().startswith(f"help: lynx-render help LX{code - 1}")
        return out.splitlines(), lines

    def refused(self, code: int, *arguments: str) -> str:
        """The one line of an error."""
        _, err = self.run(*arguments, code=code)
        assert len(err) == 1, err
        return err[0]

    def partials(self) -> list[Path]:
        return [path for path in self.folder.rglob("*") if path.suffix in (".part", ".incomplete")]


def pack(**files: bytes) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        for name, content in files.items():
            packed.writestr(f"{name}.onnx", content)
    return archive.getvalue()


@pytest.fixture
def hub(demo: Path) -> Iterator[Hub]:
    """A hub with the demo's checkpoint, and files that nobody asks for."""
    repository = {
        path.relative_to(demo / "wan").as_posix(): path.read_bytes()
        for path in sorted((demo / "wan").rglob("*"))
        if path.is_file()
    }
    for name in ("resampler", "ip_layers"):
        repository[f"lynx/{name}.safetensors"] = (demo / "lite" / f"{name}.safetensors").read_bytes()
    repository |= {"README.md": b"of no use", "lynx/ref_layers.safetensors": b"of no use"}
    with serve(
        Hub(repository, {"buffalo_l.zip": pack(det_10g=b"detector", w600k_r50=b"other"), ARCFACE: LARGE})
    ) as hub:
        yield hub


@pytest.fixture
def user(tmp_path: Path, hub: Hub) -> User:
    return User(tmp_path, hub)


def test_the_whole_pipeline(user: User, demo: Path) -> None:
    out, err = user.run()
    assert err == []
    assert out[0] == "insightface's pack buffalo_l: licence: non-commercial research only"
    assert out[1].startswith("downloading 14 files, ")
    assert [line.split()[0] for line in out[2:]] == ["base", "resampler", "id", "detector", "recognizer"]
    assert (user.folder / "imported").read_text() == ""
    snapshot = user.blobs.parent / "snapshots" / COMMIT
    for path in (demo / "wan").rglob("*.*"):
        assert (snapshot / path.relative_to(demo / "wan")).read_bytes() == path.read_bytes()
    assert (snapshot / "lynx" / "ip_layers.safetensors").read_bytes() == (
        demo / "lite" / "ip_layers.safetensors"
    ).read_bytes()
    assert f"org/base, apache-2.0: {snapshot}" in out[2]
    assert sorted(path.name for path in user.pack.iterdir()) == ["det_10g.onnx", "w600k_r50.onnx"]
    assert user.arcface.read_bytes() == LARGE
    assert not user.partials()
    assert not user.hub.downloads("README.md")
    assert not user.hub.downloads("ref_layers.safetensors")

    # Again: nothing is downloaded, and a program reads the same from stdout.
    user.hub.requests.clear()
    out, err = user.run("fetch", "p.yaml", "--json")
    assert err == ["checking 13 files already here"]
    assert not [one for one in user.hub.requests if one.method == "GET" and not one.path.startswith("/api/")]
    summary: dict[str, Any] = json.loads("\n".join(out))
    assert [one["name"] for one in summary["files"]] == ["base", "resampler", "id", "detector", "recognizer"]
    assert summary["files"][1]["bytes"] == len(user.hub.repository["lynx/resampler.safetensors"])
    assert summary["files"][0]["license"] == "apache-2.0"


def test_quiet(user: User) -> None:
    out, err = user.run("fetch", "p.yaml", "--quiet")
    assert err == []
    assert [line.split()[0] for line in out] == ["base", "resampler", "id", "detector", "recognizer"]


def test_a_lora_and_a_single_file(user: User) -> None:
    """The base's own transformer is not downloaded if a single file replaces it. Equal files are downloaded once."""
    content = user.hub.repository["lynx/ip_layers.safetensors"]  # fetch reads no keys
    user.hub.repository |= {"loras/style.safetensors": content, "packed/wan.safetensors": content + b" "}
    files = "  transformer: hub:org/base/packed/wan.safetensors\n  loras: [hub:org/base/loras/style.safetensors]\nface:"
    (user.folder / "p.yaml").write_text(PIPELINE.replace("face:", files, 1))
    out, _ = user.run("fetch", "p.yaml", "--json")
    files_by_name = {one["name"]: one for one in json.loads("\n".join(out))["files"]}
    assert list(files_by_name) == ["base", "resampler", "id", "transformer", "LoRA", "detector", "recognizer"]
    assert files_by_name["transformer"]["bytes"] == len(content) + 1
    assert {files_by_name[name]["license"] for name in ("transformer", "LoRA")} == {"apache-2.0"}
    assert user.hub.downloads("wan.safetensors") == [0]
    assert user.hub.downloads("style.safetensors") + user.hub.downloads("ip_layers.safetensors") == [0]
    own = [path for path in user.hub.repository if path.startswith("transformer/") and path.endswith(".safetensors")]
    assert own
    assert not any(user.hub.downloads(path) for path in own)

    (user.folder / "p.yaml").write_text(PIPELINE.replace("face:", files.replace("style", "stile"), 1))
    assert "loras/stile.safetensors: the repository has no such file; did you mean" in user.refused(2)


def test_a_damaged_file_is_downloaded_again(user: User) -> None:
    user.run()
    content = user.hub.repository["vae/diffusion_pytorch_model.safetensors"]
    (user.blobs / sha256(content)).write_bytes(content[:-1] + b"?")
    config = user.blobs.parent / "snapshots" / COMMIT / "vae" / "config.json"
    config.write_bytes(bytes(len(config.read_bytes())))
    user.hub.requests.clear()
    user.run()
    assert (user.blobs / sha256(content)).read_bytes() == content
    assert config.read_bytes() == user.hub.repository["vae/config.json"]
    downloaded = {one.path.split("/vae/")[-1] for one in user.hub.requests if one.method == "GET"}
    assert {path for path in downloaded if "/" not in path} == {"diffusion_pytorch_model.safetensors", "config.json"}


def test_a_connection_that_ends_is_resumed_by_the_next_run(user: User) -> None:
    user.hub.cut[ARCFACE] = CUT  # then the server refuses, so that the first run ends
    assert user.refused(3).endswith(": run fetch again: it resumes")
    arrived = user.arcface.with_name(f"{user.arcface.name}.part").stat().st_size
    assert 0 < arrived <= CUT
    assert not user.arcface.exists()
    user.hub.cut.clear()
    user.hub.requests.clear()
    out, _ = user.run()
    assert any("of them already here" in line for line in out)
    assert user.hub.downloads(ARCFACE) == [arrived]
    assert user.arcface.read_bytes() == LARGE
    assert not user.partials()


def test_ctrl_c_leaves_what_has_arrived(user: User) -> None:
    name = "transformer/large.safetensors"
    user.hub.repository[name], user.hub.stall[name] = LARGE, CUT
    part = user.blobs / f"{sha256(LARGE)}.incomplete"
    with user.start("fetch", "p.yaml") as process:
        while not (user.hub.stalled.is_set() and part.exists() and part.stat().st_size):
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out.splitlines()[-1] == "stopped; what has arrived stays, run again to resume"
    assert err == ""
    arrived = part.stat().st_size
    user.hub.stall.clear()
    user.hub.requests.clear()
    user.run()
    assert user.hub.downloads("large.safetensors") == [arrived]
    assert (user.blobs / sha256(LARGE)).read_bytes() == LARGE


def test_another_recogniser_is_refused(user: User) -> None:
    user.hub.files[ARCFACE] = b"other weights"
    line = user.refused(3)
    assert f"/files/{ARCFACE}: wrong content: expected digest {sha256(LARGE)}" in line
    assert list(user.arcface.parent.glob("*.pth*")) == []


def test_a_damaged_pack_is_refused(user: User) -> None:
    user.hub.files["buffalo_l.zip"] = pack(det_10g=b"detector").replace(b"detector", b"detectoR")
    assert "buffalo_l.zip: damaged: Bad CRC-32" in user.refused(3)
    assert not user.pack.exists()
    user.hub.files["buffalo_l.zip"] = pack(det_10g=b"detector")
    user.run()
    assert (user.pack / "det_10g.onnx").read_bytes() == b"detector"


def test_a_hub_that_cannot_be_reached(user: User) -> None:
    user.hub.url = "http://127.0.0.1:9"
    line = user.refused(3)
    assert line.startswith("http://127.0.0.1:9/api/models/org/base: cannot be reached: ")
    assert "check the network, the proxy and HF_ENDPOINT" in line


def test_a_gated_repository(user: User) -> None:
    user.hub.gated = True
    line = user.refused(3)
    assert "refuses access (403)" in line
    assert "log in with `hf auth login` or set HF_TOKEN" in line


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("org/base\n", ("org/none\n", "org/none: no such repository on the hub")),
        ("base: org/base", ("base: org/base@v2", "org/base@v2: the repository has no such revision")),
        (
            "hub:org/base/lynx/resampler",
            ("hub:org/base/lynx/resamplr", "resamplr.safetensors: the repository has no such file; did you mean"),
        ),
        ("version: 1", ("version: 2", "p.yaml:1: version: 2: must be 1")),
    ],
)
def test_a_wrong_pipeline(user: User, change: str, message: tuple[str, str]) -> None:
    (user.folder / "p.yaml").write_text(PIPELINE.replace("face:", "#").replace(change, message[0]))
    assert message[1] in user.refused(2)


HUB_NAMES = ("org/base", *(f"hub:org/base/lynx/{name}.safetensors" for name in ("resampler", "ip_layers")))


@pytest.fixture
def planner(user: User) -> User:
    """A user with a campaign of four shots, whose subjects have embeddings."""
    small.write(user.folder)
    small.draw(user.folder)
    (user.folder / "full.yaml").write_text(PIPELINE.partition("face:")[0])
    return user


def test_plan_downloads_nothing(planner: User) -> None:
    long = "negative_prompt: " + "é" * 200
    (planner.folder / "m.yaml").write_text(small.MANIFEST.replace("output: out", f"output: out\nsampling: {{{long}}}"))
    out, err = planner.run("plan", "m.yaml", "--shots")
    assert [line for line in out if line.startswith(("m.yaml", "unknown ", "missing "))] == [
        "m.yaml: 4 shots: 0 to render, 0 to encode, 0 done, 0 blocked, 4 unknown",
        *(f"unknown {name}-t01: never finished" for name in ("ada/walk", "ada/run", "bob/walk", "bob/run")),
        *(f"missing {name}: not on this machine: lynx-render fetch full.yaml downloads it" for name in HUB_NAMES),
    ]
    assert err == [
        "warning: not checked for more than 512 tokens: the tokenizer is not on this machine (1): negative prompt"
    ]
    out, _ = planner.run("plan", "m.yaml", "--json", "--detailed-exitcode", code=4)
    assert json.loads(out[0])["missing"] == [f"{name}: not on this machine" for name in HUB_NAMES]
    assert planner.hub.requests == []
    assert not planner.blobs.exists()


def test_plan_of_a_hub_that_is_cached(planner: User) -> None:
    planner.run("fetch", "full.yaml")
    asked = len(planner.hub.requests)
    out, _ = planner.run("plan", "m.yaml", "--detailed-exitcode", code=4)
    assert out[0] == "m.yaml: 4 shots: 4 to render, 0 to encode, 0 done, 0 blocked"
    assert not any(line.startswith("missing ") for line in out)
    assert planner.run("plan", "m.yaml", "--set", "sampling.ref_blocks=0-9", code=2)[1] == [
        "sampling.ref_blocks '0-9': the model has blocks 0 to 2 (ada/walk-t01)"
    ]
    assert len(planner.hub.requests) == asked
    assert (planner.folder / "imported").read_text() == ""
    # A part of the base is lost: what else can be known is still checked.
    vae = planner.blobs.parent / "snapshots" / COMMIT / "vae" / "diffusion_pytorch_model.safetensors"
    vae.unlink()
    out, _ = planner.run("plan", "m.yaml")
    assert [line for line in out if line.startswith("missing ")] == [
        "missing org/base: incomplete on this machine: missing vae/*.safetensors: "
        "lynx-render fetch full.yaml downloads it"
    ]
    assert planner.run("plan", "m.yaml", "--ulysses", "3", code=2)[1][0].startswith("--ulysses 3: does not divide")
    assert len(planner.hub.requests) == asked


def test_what_plan_knows_of_finished_shots_without_the_weights(planner: User) -> None:
    campaign = small.load(planner.folder)
    for shot in campaign.shots[:3]:
        small.finish(campaign, shot)
    (planner.folder / "out" / "ada" / "run-t01.mp4").unlink()
    changed = small.MANIFEST.replace("vars: {person: man}", "vars: {person: boy}").replace("2027-01-31", "2020-01-31")
    for text, expected in (
        (small.MANIFEST, ["finished; whether with these weights is not known", "video missing or damaged",
                          "finished; whether with these weights is not known", "never finished"]),
        (changed, ["consent form-1 expired on 2020-01-31"] * 2 + ["changed: prompt", "never finished"]),
    ):  # fmt: skip
        (planner.folder / "m.yaml").write_text(text)
        shots = json.loads(planner.run("plan", "m.yaml", "--json")[0][0])["shots"]
        assert [shot["reason"] for shot in shots] == expected
        assert [shot["action"] for shot in shots] == [
            "blocked" if reason.startswith("consent") else "unknown" for reason in expected
        ]


def test_render_refuses_a_base_before_it_downloads_all_of_it(planner: User) -> None:
    index = {**json.loads(planner.hub.repository["model_index.json"]), "expand_timesteps": True}
    planner.hub.repository["model_index.json"] = json.dumps(index).encode()
    _, err = planner.run("m.yaml", code=2)
    assert "this is Wan2.2-TI2V-5B, which is not supported: supported are Wan2.1 T2V and I2V" in err[-1]
    assert not planner.hub.downloads("diffusion_pytorch_model.safetensors")
    assert not planner.hub.downloads("model.safetensors")


def test_everything_that_is_missing_at_once(planner: User) -> None:
    """Face models, which only fetch downloads, and parts of a base of the user's own, which nothing does."""
    (planner.folder / "base" / "vae").mkdir(parents=True)
    (planner.folder / "base" / "vae" / "config.json").write_text("{}")
    text = PIPELINE.replace("base: org/base", "base: ./base")
    (planner.folder / "full.yaml").write_text(text)
    manifest = small.MANIFEST.replace("    embedding: bob.npy\n", "")
    (planner.folder / "m.yaml").write_text(manifest)
    base = planner.folder / "base"
    hint = f"missing: is {base} a Wan model in diffusers layout?"
    by_hand = [
        f"{base / part}: {hint}"
        for part in ("transformer", "text_encoder", "tokenizer", "vae/*.safetensors", "scheduler")
    ]
    assert planner.run("plan", "m.yaml", code=2)[1] == by_hand
    faces = [
        f"{name}: missing: {path}: lynx-render fetch full.yaml downloads it, "
        "or name another place in the pipeline's face:"
        for name, path in (("buffalo_l", planner.pack), ("arcface_ir_se50", planner.arcface))
    ]
    assert planner.run("render", "m.yaml", code=2)[1] == [*by_hand, *faces]
    assert planner.hub.requests == []
    (planner.folder / "full.yaml").write_text(PIPELINE)
    out, _ = planner.run("plan", "m.yaml")
    assert [line.split(": ")[0] for line in out if line.startswith("missing ")] == [
        f"missing {name}" for name in (*HUB_NAMES, "buffalo_l", "arcface_ir_se50")
    ]


def test_no_room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from lynx_parallel.errors import ClusterError
    from lynx_parallel.fetch.download import Download, check_room

    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    check_room([Download("", tmp_path / "a" / "b", size=1)])
    with pytest.raises(ClusterError, match=r"are missing, but only .* are free: free some room, or set HF_HOME"):
        check_room([Download("", tmp_path / "a" / "b", size=2 * free)])
