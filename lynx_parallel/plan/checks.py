"""Checks that ``plan`` and ``render`` make before any work. Imports neither torch nor Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lynx_parallel.errors import InputErrors
from lynx_parallel.inputs.base_configs import base_mistakes
from lynx_parallel.inputs.cleaning import MAX_TOKENS
from lynx_parallel.inputs.cluster import CUDA_ONLY, ClusterSpec
from lynx_parallel.inputs.embedding_file import embedding_mistake
from lynx_parallel.inputs.licences import licence_mistakes
from lynx_parallel.inputs.manifest import Campaign
from lynx_parallel.inputs.notices import Notice
from lynx_parallel.inputs.picture_file import HEIC_REMEDY, HeicUnreadable, OutsideLandmarks, picture_mistake
from lynx_parallel.inputs.recognizers import recognizer_mistake, with_files
from lynx_parallel.inputs.weight_files import FaceFiles, WeightFiles
from lynx_parallel.plan.base_checks import base_fit_mistakes
from lynx_parallel.plan.layout_choice import LayoutChoice
from lynx_parallel.plan.plan import Item
from lynx_parallel.plan.prompt_length import Cut, find_cuts, may_be_too_long
from lynx_parallel.text import shown_path

CRF_0 = (
    "browsers and QuickTime do not play such a file, and h265 is not lossless at 0: use 1 or more, or "
    "video.lossless: true"
)


def check_work(
    campaign: Campaign,
    todo: Sequence[Item],
    weights: WeightFiles,
    cluster: ClusterSpec,
    face: FaceFiles | None = None,
) -> None:
    """Refuses what would fail in every shot that is to be made.

    Args:
        todo: shots to render or to encode; finished ones are not looked at.
        weights: some may be missing. Checks that need them are then skipped.
        face: face models, for the recogniser that scores the videos.

    Raises:
        InputErrors: all mistakes, one line each.
        CheckpointError: a configuration of the base that cannot be read.
    """
    if not todo:
        return
    video = campaign.pipeline.video
    lines = [f"{campaign.crf_place}: {CRF_0}"] if video.crf == 0 and not video.lossless else []
    lines += _attention_mistakes(cluster, campaign.pipeline.model.dtype)
    if campaign.quality is not None and (mistake := recognizer_mistake(with_files(campaign.quality.recognizer, face))):
        lines.append(mistake)
    recognizer = campaign.quality.recognizer if campaign.quality else None
    lines += licence_mistakes(campaign.pipeline, recognizer, campaign.site)
    mistakes = base_mistakes(weights.base)
    lines += mistakes
    if not mistakes and (weights.base / "transformer" / "config.json").exists():
        lines += base_fit_mistakes(campaign, (item.shot for item in todo), weights)
        layout_choice = LayoutChoice(cluster, weights)
        lines += layout_choice.mistakes(item.shot for item in todo)
        lines += layout_choice.count_mistakes()
    if lines:
        raise InputErrors(dict.fromkeys(lines))


def _attention_mistakes(cluster: ClusterSpec, dtype: str) -> list[str]:
    name = f"--attention {cluster.attention}"
    if cluster.attention not in CUDA_ONLY:
        return []
    if dtype == "float32":
        return [f"{name}: does not run in float32, the pipeline's dtype: use auto or sdpa"]
    return [f"{name}: runs on CUDA only, not with --device cpu: use auto or sdpa"] if cluster.device == "cpu" else []


def unreadable_pictures(campaign: Campaign) -> tuple[dict[str, str], list[Notice]]:
    """Reads format and size of each picture that a shot needs, and compares written landmarks with the size.

    Returns:
        What is wrong, by the subject's id, and a warning for each.
    """
    wrong: dict[str, str] = {}
    notices = []
    needs_pixels = campaign.pipeline.model.adapters.ref is not None
    for subject in {shot.subject.id: shot.subject for shot in campaign.shots}.values():
        if subject.image is None or not (needs_pixels or subject.embedding is None):
            continue
        if (error := picture_mistake(subject.image, subject.landmarks)) is None:
            continue
        reason = str(error).replace(str(subject.image), shown_path(subject.image), 1)
        wrong[subject.id] = reason
        if isinstance(error, HeicUnreadable):
            message = f"HEIC pictures cannot be read; the shots that need them are blocked: {HEIC_REMEDY}"
            notices.append(Notice("picture-heic", message, shown_path(subject.image)))
        elif isinstance(error, OutsideLandmarks):
            message = "landmarks lie outside their picture; the shots that need them are blocked"
            notices.append(Notice("landmarks-outside", message, reason))
        else:
            message = "pictures cannot be read; the shots that need them are blocked"
            notices.append(Notice("picture-unreadable", message, reason))
    return wrong, notices


def embedding_mistakes(campaign: Campaign) -> list[str]:
    """Returns one line for each embedding file of a subject with shots that cannot be used."""
    subjects = {shot.subject.id: shot.subject for shot in campaign.shots}.values()
    lines = []
    for path in dict.fromkeys(subject.embedding for subject in subjects if subject.embedding):
        if mistake := embedding_mistake(path):
            lines.append(mistake.replace(str(path), shown_path(path), 1))
    return lines


def long_texts(campaign: Campaign, base: Path) -> tuple[dict[str, Cut], list[Notice]]:
    """Finds prompts and negative prompts of which the model does not see the end.

    Args:
        base: its tokenizer may be missing; nothing is counted then.

    Returns:
        What is lost, by text, and a warning for each prompt.

    Raises:
        CheckpointError: the tokenizer cannot be read.
    """
    places: dict[str, str] = {}
    for shot in campaign.shots:
        places.setdefault(shot.text, f"prompt {shot.prompt.id}")
        places.setdefault(shot.sampling.negative_prompt, "negative prompt")
    suspects = {text: place for text, place in places.items() if may_be_too_long(text)}
    if not suspects:
        return {}, []
    tokenizer = base / "tokenizer"
    if not (tokenizer / "tokenizer.json").is_file():
        message = f"not checked for more than {MAX_TOKENS} tokens: the tokenizer is not on this machine"
        return {}, [Notice("prompt-not-checked", message, place) for place in dict.fromkeys(suspects.values())]
    cuts = find_cuts(tokenizer, suspects)
    message = f"longer than {MAX_TOKENS} tokens: the model does not see the end; shorten the text"
    first: dict[str, Cut] = {}  # a prompt has a text for each subject
    for text, cut in cuts.items():
        first.setdefault(suspects[text] if suspects[text] != "negative prompt" else text, cut)
    notices = []
    for name, cut in first.items():
        place = "negative prompt" if name in cuts else name
        notices.append(Notice("prompt-too-long", message, f"{place}: {cut.short()}"))
    return cuts, notices


def video_notices(campaign: Campaign) -> list[Notice]:
    """Returns a warning about a lossless video."""
    video = campaign.pipeline.video
    if not video.lossless:
        return []
    message = "lossless videos are large, and browsers and QuickTime do not play them"
    return [Notice("video-lossless", message, f"video.lossless with {video.codec}")]


def as_warnings(cuts: Mapping[str, Cut]) -> dict[str, str]:
    """Returns what is lost of each text in words, whole."""
    return {text: str(cut) for text, cut in cuts.items()}
