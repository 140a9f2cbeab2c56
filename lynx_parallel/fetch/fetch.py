"""lynx-render fetch: downloads the weights and face models of a pipeline, and shows where they are stored.

Files of the hub go to the hub's own cache, where other programs find them. This module downloads them by itself,
because ``snapshot_download`` restarts every file after an interruption. Imports neither torch nor Ray.
"""

from __future__ import annotations

import contextlib
import shutil
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from lynx_parallel.errors import CheckpointError, DownloadError, LynxError
from lynx_parallel.failures import disk_is_full
from lynx_parallel.fetch.download import Download, check_room, download_all, with_sizes
from lynx_parallel.inputs.pipeline import ARCFACE, BUFFALO_L, PipelineSpec
from lynx_parallel.inputs.problems import nearest
from lynx_parallel.inputs.weight_files import ARCFACE_SHA256, BASE_PATTERNS, FaceFiles, WeightFiles
from lynx_parallel.plan.converted import convert
from lynx_parallel.plan.hashing import DigestCache, weight_digests
from lynx_parallel.plan.weights import (
    arcface_file,
    base_patterns,
    find_face_models,
    find_weights,
    hub_base,
    hub_file,
    pack_folder,
    replaced_parts,
)
from lynx_parallel.text import counted, first_line, one_line, shown_size
from lynx_parallel.view.transfer import Transfer

PACK_URL = "https://github.com/deepinsight/insightface/releases/download/v0.7/buffalo_l.zip"
PACK_LICENSE = "non-commercial research only"
ARCFACE_URL = "https://github.com/xinntao/facexlib/releases/download/v0.1.0/recognition_arcface_ir_se50.pth"
_NO_LICENSE = "licence not stated"
_LOG_IN = "log in with `hf auth login` or set HF_TOKEN"


@dataclass(frozen=True)
class Fetched:
    """A part of a pipeline that is stored on this machine.

    Attributes:
        name: ``base``, an adapter, a face model, or ``converted``.
        source: what the pipeline calls it.
        path: file or folder.
        bytes: size of all its files.
    """

    name: str
    source: str
    path: Path
    bytes: int
    license: str


def fetch(spec: PipelineSpec, *, converting: bool, stream: TextIO | None, say: Callable[[str], None]) -> list[Fetched]:
    """Downloads the files of a pipeline that are missing on this machine.

    Args:
        converting: also stores a copy of the transformer in the pipeline's dtype, if its files have another one.
        stream: where a bar is shown if it is a terminal; None for no bar.
        say: prints a line for the user.

    Returns:
        All parts of the pipeline, including those that were present before.

    Raises:
        CheckpointError: the pipeline names something that does not exist.
        DownloadError: a server cannot be reached or refuses, a file's content is wrong, or a disk is full.
    """
    with _remedies():
        digest_cache = DigestCache()
        licenses: dict[str, str] = {}
        # Files of equal content share a blob in the hub's cache, which must be downloaded only once.
        wanted = list({one.path: one for one in (*_hub_files(spec, licenses), *_face_files(spec))}.values())
        if here := sum(one.path.exists() for one in wanted):
            say(f"checking {counted(here, 'file')} already here")
        lacking = with_sizes([one for one in wanted if not one.is_there(digest_cache)])
        digest_cache.save()
        if any(one.url == PACK_URL for one in lacking):
            say(f"insightface's pack buffalo_l: licence: {PACK_LICENSE}")
        if lacking:
            check_room(lacking)
            total, arrived = sum(one.size or 0 for one in lacking), sum(one.arrived for one in lacking)
            resumed = f", {shown_size(arrived)} of them already here" if arrived else ""
            say(f"downloading {counted(len(lacking), 'file')}, {shown_size(total)}{resumed}")
            with Transfer(total, arrived, "downloaded", stream, say) as transfer:
                download_all(lacking, transfer, digest_cache)
        _unpack()
        weights, face = find_weights(spec.model), find_face_models(spec.face)
        digests = weight_digests(weights, face)
    if converting:
        weights = _converted(weights, digests, spec.model.dtype, stream, say)
    return list(_report(spec, weights, face, licenses))


def _hub_files(spec: PipelineSpec, licenses: dict[str, str]) -> Iterator[Download]:
    """Yields the files of the hub that a pipeline needs; fills in the licence of each repository."""
    from huggingface_hub.utils import disable_progress_bars, filter_repo_objects, logging

    disable_progress_bars()
    logging.set_verbosity_error()  # hides the library's lines about retries
    patterns: dict[tuple[str, str | None], list[str]] = {}
    if base := hub_base(spec.model.base):
        patterns.setdefault(base, []).extend(base_patterns(spec.model))
    adapters = spec.model.adapters
    files = (spec.model.transformer, spec.model.transformer_2, adapters.resampler, adapters.id, adapters.ref)
    for adapter in (*files, *spec.model.loras):
        if adapter and (found := hub_file(adapter.file)):
            repo, revision, path = found
            patterns.setdefault((repo, revision), []).append(path)
    for (repo, revision), allowed in patterns.items():
        info = _ask_hub(repo, revision)
        tags = [tag.removeprefix("license:") for tag in info.tags or () if tag.startswith("license:")]
        licenses[repo] = tags[0] if tags else _NO_LICENSE
        there = [file.rfilename for file in info.siblings or ()]
        for path in allowed:
            if "*" not in path and path not in there and path not in BASE_PATTERNS:
                raise CheckpointError(f"hub:{repo}/{path}: the repository has no such file; {nearest(path, there)}")
        for file in filter_repo_objects(info.siblings or (), allow_patterns=allowed, key=lambda one: one.rfilename):
            if (file.lfs or file.blob_id) and file.size is not None:
                yield _hub_download(repo, info.sha, file)


def _ask_hub(repo: str, revision: str | None) -> Any:
    """Returns the hub's description of a repository and its files."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    name = f"{repo}@{revision}" if revision else repo
    try:
        return HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=30)
    except GatedRepoError:
        raise
    except RepositoryNotFoundError:
        raise CheckpointError(f"{name}: no such repository on the hub; if it is a private one, {_LOG_IN}") from None
    except RevisionNotFoundError:
        raise CheckpointError(f"{name}: the repository has no such revision") from None


def _hub_download(repo: str, commit: str, file: Any) -> Download:
    """Returns the download of a file to its blob in the hub's cache. ``find_weights`` later links to the blob."""
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.file_download import repo_folder_name
    from huggingface_hub.utils import build_hf_headers

    digest = file.lfs.sha256 if file.lfs else file.blob_id
    return Download(
        url=hf_hub_url(repo, file.rfilename, revision=commit),
        path=Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model") / "blobs" / digest,
        size=file.size,
        digest=digest,
        headers=build_hf_headers(),
        suffix=".incomplete",  # so that `hf cache` knows it
    )


def _face_files(spec: PipelineSpec) -> Iterator[Download]:
    """Yields the downloads of a pipeline's face models, which are not published on the hub."""
    if spec.face and spec.face.detector == BUFFALO_L and not pack_folder().exists():
        yield Download(PACK_URL, _archive())
    if spec.face and spec.face.recognizer == ARCFACE:
        yield Download(ARCFACE_URL, arcface_file(), digest=spec.face.recognizer_sha256 or ARCFACE_SHA256)


def _archive() -> Path:
    return pack_folder().with_suffix(".zip")


def _unpack() -> None:
    """Unpacks insightface's archive, if it has been downloaded, into the folder that insightface expects.

    Raises:
        DownloadError: the archive is damaged; it is removed.
    """
    archive, folder = _archive(), pack_folder()
    if folder.exists() or not archive.is_file():
        return
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        with zipfile.ZipFile(archive) as packed:
            names = [name for name in packed.namelist() if name.endswith(".onnx")]
            for name in names:
                with packed.open(name) as source, (part / Path(name).name).open("wb") as target:
                    shutil.copyfileobj(source, target)  # compares checksums
        if not names:
            raise zipfile.BadZipFile("it holds no .onnx file")
    except zipfile.BadZipFile as error:
        archive.unlink()
        raise DownloadError(f"{archive}: damaged: {one_line(error)}: removed; run fetch again") from None
    part.rename(folder)
    archive.unlink()


def _converted(
    weights: WeightFiles, digests: dict[str, str], dtype: str, stream: TextIO | None, say: Callable[[str], None]
) -> WeightFiles:
    transfer: Transfer | None = None
    with contextlib.ExitStack() as stack:

        def show(done: int, total: int) -> None:
            nonlocal transfer
            if transfer is None:
                if total:
                    say(f"storing the transformer once more in {dtype}, {shown_size(total)}")
                transfer = stack.enter_context(Transfer(total, 0, "converted", stream, say))
            transfer.advance(done - transfer.arrived)

        weights = convert(weights, digests, dtype, show)
    if weights.converted is None:
        say(f"the transformer is stored in {dtype} already: nothing to convert")
    return weights


def _report(
    spec: PipelineSpec, weights: WeightFiles, face: FaceFiles | None, licenses: dict[str, str]
) -> Iterator[Fetched]:
    def from_hub(found: tuple[str, str | None] | tuple[str, str | None, str] | None) -> str:
        return licenses.get(found[0], _NO_LICENSE) if found else _NO_LICENSE

    base, adapters = spec.model.base, spec.model.adapters
    yield Fetched("base", base, weights.base, _size(weights.base), from_hub(hub_base(base)))
    for copy in (weights.converted, weights.converted_2):
        if copy is not None:
            yield Fetched("converted", base, copy, _size(copy), from_hub(hub_base(base)))
    for name, path in (("resampler", weights.resampler), ("id", weights.id), ("ref", weights.ref)):
        if path is not None:
            adapter = getattr(adapters, name)
            license_ = adapter.license or from_hub(hub_file(adapter.file))
            yield Fetched(name, adapter.file, path, _size(path), license_)
    for part in replaced_parts(spec.model):
        file, path = getattr(spec.model, part), getattr(weights, part)
        yield Fetched(part, file.file, path, _size(path), file.license or from_hub(hub_file(file.file)))
    for lora, file in zip(spec.model.loras, weights.loras, strict=True):
        license_ = lora.license or from_hub(hub_file(lora.file))
        yield Fetched("LoRA", lora.file, file.path, _size(file.path), license_)
    if spec.face is not None and face is not None:
        license_ = PACK_LICENSE if spec.face.detector == BUFFALO_L else _NO_LICENSE
        yield Fetched("detector", spec.face.detector, face.detector, _size(face.detector), license_)
        yield Fetched("recognizer", spec.face.recognizer, face.recognizer, _size(face.recognizer), _NO_LICENSE)


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def _shown_url(url: object) -> str:
    """Returns an address without its query, which may hold a signature."""
    return str(url).partition("?")[0]


@contextlib.contextmanager
def _remedies() -> Iterator[None]:
    """Turns errors of servers and disks into a DownloadError of one line with a remedy."""
    # Imported late because it is slow. HTTPError belongs to the HTTP library that huggingface_hub uses.
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

    again = "run fetch again: it resumes"
    try:
        yield
    except LynxError:
        raise
    except OfflineModeIsEnabled:
        raise DownloadError("HF_HUB_OFFLINE is set: unset it to download") from None
    except HfHubHTTPError as error:
        url, status = _shown_url(error.response.url), error.response.status_code
        if status in (401, 403):
            hint = f"accept the terms on the repository's page, if it asks for that, and {_LOG_IN}"
            raise DownloadError(f"{url}: the server refuses access ({status}): {hint}") from None
        reason = error.server_message or error.response.reason_phrase
        raise DownloadError(f"{url}: the server answers {status}: {one_line(reason)}: {again}") from None
    except HTTPError as error:
        request = getattr(error, "_request", None)
        where = _shown_url(request.url) if request else "a server"
        hint = "check the network, the proxy and HF_ENDPOINT"
        raise DownloadError(f"{where}: cannot be reached: {first_line(error)}: {hint}, then {again}") from None
    except OSError as error:
        if disk_is_full(error):
            raise DownloadError(
                f"{error.filename or 'disk'}: no room left: free some, or set HF_HOME (weights) or LYNX_CACHE to "
                f"another disk, then {again}"
            ) from None
        raise DownloadError(f"{first_line(error)}: {again}") from None
