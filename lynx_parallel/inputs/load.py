"""Reads manifest and pipeline files into specs, or raises one InputErrors with the line of every mistake."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lynx_parallel.inputs.entries import DEFAULT_NAME, ManifestFile
from lynx_parallel.inputs.expand import Expansion
from lynx_parallel.inputs.groups import read_groups
from lynx_parallel.inputs.lost_text import warn_of_lost_text
from lynx_parallel.inputs.manifest import Campaign, Shot, ShotGroup, Subject, reference_sizes, split
from lynx_parallel.inputs.names import pattern_mistake
from lynx_parallel.inputs.near_files import near_file
from lynx_parallel.inputs.overrides import read_overrides, select
from lynx_parallel.inputs.pipeline import PipelineSpec, Video
from lynx_parallel.inputs.pipeline_files import is_bare, named_pipeline, video_of
from lynx_parallel.inputs.problems import Problems, nearest, shown_value
from lynx_parallel.inputs.prompts_section import read_prompts
from lynx_parallel.inputs.quality import quality_of
from lynx_parallel.inputs.records import Record, find_record
from lynx_parallel.inputs.sampling import Sampling
from lynx_parallel.inputs.scorers import read_scorers
from lynx_parallel.inputs.shipped import shipped_dir, shipped_names
from lynx_parallel.inputs.site import load_site
from lynx_parallel.inputs.sources import reading
from lynx_parallel.inputs.subject_entry import check_vars
from lynx_parallel.inputs.subjects_section import face_gaps, is_pattern, read_subjects
from lynx_parallel.inputs.takes_file import read_all_takes
from lynx_parallel.inputs.validate import read_model
from lynx_parallel.inputs.variants_section import read_variants
from lynx_parallel.inputs.yaml_lines import Document, read_yaml
from lynx_parallel.text import shown_path

_log = logging.getLogger(__name__)


def load_campaign(manifest: Path | str | Record, overrides: Sequence[str] = (), only: Sequence[str] = ()) -> Campaign:
    """Reads a manifest, its pipeline file, prompts and tables, and expands them to shots.

    Args:
        manifest: a path, the bare name of a shipped manifest (its output then is ``./renders/<name>``), or the record
            of a run: the copies in it are read then, and the output is the folder that the record is in.
        overrides: ``--set`` options such as ``sampling.seed=7``; they win over everything, except that they
            leave the seeds given by ``seeds:`` or a table's seed column alone.
        only: ``--only`` patterns on ``subject/prompt`` or the output name.

    Raises:
        InputErrors: all mistakes, one line each.
    """
    record = manifest if isinstance(manifest, Record) else find_record(manifest)
    _log.debug("reading %s", manifest)
    with reading(record.copies if record else None) as sources:
        campaign = _load_campaign(manifest if record is None else record, overrides, only)
    return replace(campaign, sources=sources.content)


def _load_campaign(manifest: Path | str | Record, overrides: Sequence[str], only: Sequence[str]) -> Campaign:
    problems = Problems()
    forced = read_overrides(overrides, problems)
    path: Path | None
    output: Path | None
    if isinstance(manifest, Record):
        path, output = manifest.manifest, manifest.output
    else:
        path, output = _find_manifest(manifest, problems)
    document = read_yaml(path, problems) if path else None
    if document is None:
        problems.raise_if_any()
    assert document is not None
    top = read_model(ManifestFile, document, (), problems)
    if top:
        check_vars(top.vars, lambda path, message: document.blame(problems, ("vars", *path), message))
    warn_of_lost_text(document, problems)
    if forced.subjects is not None:
        _replace_subjects(document, forced.subjects)
    scorers = read_scorers(document, problems)
    subjects, prompts = read_subjects(document, problems), read_prompts(document, problems)
    from_table = isinstance(document.data.get("shots"), dict)
    if "prompts" not in document.data and not from_table:
        document.blame(problems, ("prompts",), "missing: a mapping id: text")
    pipeline_path, pipeline = named_pipeline(document, document.data.get("pipeline"), ("pipeline",), problems)
    variants = read_variants(document, problems)
    place = _output(document, forced.output, output, problems)
    groups = read_groups(document, subjects, prompts, problems, place)
    _check_faces(document, groups, subjects, [pipeline, *(variant.spec for variant in variants)], problems)
    shots: tuple[Shot, ...] = ()
    sizes: dict[str, frozenset[int]] = {}
    good_subjects = {name: subject for name, subject in subjects.items() if subject}
    good_prompts = {name: prompt for name, prompt in prompts.items() if prompt}
    pattern = _pattern(document, problems)
    if top and pattern and len(good_subjects) == len(subjects) and len(good_prompts) == len(prompts):
        base = pipeline.sampling if pipeline else Sampling()
        shots = Expansion(
            document,
            problems,
            base,
            top.sampling,
            forced.sampling,
            pattern,
            good_subjects,
            good_prompts,
            top.vars,
            variants,
            read_all_takes(document, problems, place),
        ).shots(groups)
        sizes = reference_sizes(shots)
        shots = select(shots, only, problems) if shots else shots
    auditions = any(shot.audition for shot in shots)
    quality = quality_of(top.quality, document.file.parent) if top and (top.quality or auditions) else None
    if quality is not None:
        _check_pictures(document, shots, problems, gated=quality.attempts > 0)
    problems.raise_if_any()
    assert top is not None
    assert pipeline is not None
    campaign = Campaign(
        path=document.file.absolute(),
        output=place,
        pipeline=pipeline.model_copy(update={"video": video_of(pipeline, top.video, forced.video)}),
        pipeline_path=pipeline_path,
        subjects=tuple(good_subjects.values()),
        prompts=tuple(good_prompts.values()),
        shots=shots,
        save_latents=top.save_latents if forced.save_latents is None else forced.save_latents,
        notices=tuple(problems.notices),
        faces=top.faces,
        reference_sizes=sizes,
        crf_place=_crf_place(document, top.video, forced.video, pipeline_path, pipeline.video),
        quality=quality,
        scorers=scorers,
        site=load_site(),
    )
    pipelines, places = {}, {pipeline_path: campaign.crf_place}
    for variant in variants:
        if variant.pipeline and variant.spec:
            video = video_of(variant.spec, top.video, forced.video, own=True)
            pipelines[variant.id] = variant.pipeline, variant.spec.model_copy(update={"video": video})
            own = "crf" in variant.spec.video.model_fields_set
            given = Video() if own else top.video
            places[variant.pipeline] = _crf_place(document, given, forced.video, variant.pipeline, variant.spec.video)
    if not pipelines:
        return campaign
    parts = [replace(part, crf_place=places[part.pipeline_path]) for part in split(campaign, pipelines)]
    return replace(campaign, parts=tuple(parts))


def find_output(manifest: Path | str) -> Path:
    """Returns the output folder that a manifest names; nothing else of the manifest is checked.

    Args:
        manifest: see ``load_campaign``.

    Raises:
        InputErrors: no such manifest, not valid YAML, or no usable ``output``.
    """
    problems = Problems()
    path, instead = _find_manifest(manifest, problems)
    document = read_yaml(path, problems) if path else None
    problems.raise_if_any()
    assert document is not None
    if instead is None and not isinstance(document.data.get("output"), str):
        document.blame(problems, ("output",), "missing: the folder for the videos, relative to this file")
    place = _output(document, None, instead, problems)
    problems.raise_if_any()
    return place


def _find_manifest(manifest: Path | str, problems: Problems) -> tuple[Path | None, Path | None]:
    """Returns the file, and the output folder that replaces the manifest's own. Records an unknown bare name."""
    name = str(manifest)
    if not is_bare(name) or os.path.isfile(name):
        if not os.path.lexists(name):
            problems.option(f"{shown_path(name)}: no such manifest{near_file(name)}")
            return None, None
        if os.path.isdir(name):
            problems.option(f"{shown_path(name)}: a folder, not a manifest")
            return None, None
        return Path(name), None
    names = shipped_names("manifests")
    if name in names:
        return shipped_dir("manifests") / f"{name}.yaml", Path.cwd() / "renders" / name
    shown, hint = shown_path(name) or repr(name), nearest(name, names, "shipped")
    problems.option(f"{shown}: no such file, and no shipped manifest of that name; {hint}")
    return None, None


def _replace_subjects(document: Document, text: str) -> None:
    """Takes the subjects from other pictures, relative to the working folder. What holds for all of them stays."""
    given = document.data.get("subjects")
    shared = {key: value for key, value in given.items() if key != "from"} if is_pattern(given) else {}
    document.data["subjects"] = {**shared, "from": os.path.abspath(os.path.expanduser(text))}


def _pattern(document: Document, problems: Problems) -> str | None:
    """Returns the pattern of output names, or None if it is wrong."""
    pattern = document.data.get("name", DEFAULT_NAME)
    if not isinstance(pattern, str):
        return None  # read_model has said so
    wrong = pattern_mistake(pattern)
    if wrong:
        document.blame(problems, ("name",), wrong)
    return None if wrong else pattern


def _output(document: Document, forced: str | None, instead: Path | None, problems: Problems) -> Path:
    """Returns the absolute output folder: of ``--set output``, else of a shipped manifest, else of the manifest."""
    text = document.data.get("output")
    if forced is not None:
        place = os.path.realpath(os.path.expanduser(forced))
    elif instead is not None:
        place = os.path.realpath(instead)
    elif isinstance(text, str):
        folder = os.path.abspath(document.file.parent)
        place = os.path.realpath(os.path.join(folder, os.path.expanduser(text)))
    else:
        return Path()  # read_model has said so
    if os.path.exists(place) and not os.path.isdir(place):
        if forced is not None:
            problems.option(f"--set output={forced}: not a folder")
        else:
            document.blame(problems, ("output",), f"{shown_value(text)}: not a folder")
    return Path(place)


def _crf_place(document: Document, manifest: Video, forced: Mapping[str, Any], path: Path, pipeline: Video) -> str:
    """Returns what sets ``video.crf``, in the order of ``video_of``."""
    if "crf" in forced:
        return f"--set video.crf={forced['crf']}"
    if "crf" in manifest.model_fields_set:
        return f"{shown_path(document.file)}:{document.line(('video', 'crf'))}: video.crf: {manifest.crf}"
    return f"{shown_path(path)}: video.crf: {pipeline.crf}"


def _check_pictures(document: Document, shots: Sequence[Shot], problems: Problems, *, gated: bool) -> None:
    """Checks that each subject whose videos are scored has a picture to compare them with."""
    scored = {shot.subject.id: shot.subject for shot in shots if gated or shot.audition}
    for name, subject in scored.items():
        if subject.image is None:
            document.blame(
                problems, ("subjects", name), "image: missing: quality and audition compare videos with the picture"
            )


def _check_faces(
    document: Document,
    groups: Sequence[ShotGroup],
    subjects: Mapping[str, Subject | None],
    pipelines: Sequence[PipelineSpec | None],
    problems: Problems,
) -> None:
    """Checks that each subject with a shot has what the adapters of every pipeline need."""
    used = {name for group in groups for name in group.subjects}
    for name, subject in subjects.items():
        if subject is not None and name in used:
            for gap in dict.fromkeys(face_gaps(subject, pipeline) for pipeline in pipelines if pipeline):
                if gap:
                    document.blame(problems, ("subjects", name), gap)
