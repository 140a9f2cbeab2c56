"""Manifest and pipeline files to specs, or one InputErrors that tells every mistake with its line."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic.json_schema import models_json_schema

from lynx_parallel.errors import InputErrors
from lynx_parallel.shipped import Kind, shipped_dir, shipped_names
from lynx_parallel.spec.entries import ManifestFile, PromptEntry, ShotEntry, SubjectEntry, TableEntry
from lynx_parallel.spec.expand import Expansion
from lynx_parallel.spec.manifest import Campaign, Prompt, Shot, ShotGroup, Subject
from lynx_parallel.spec.names import pattern_mistake
from lynx_parallel.spec.options import Forced, read_overrides, select
from lynx_parallel.spec.pipeline import PipelineSpec, Sampling, resolve_file, resolve_weights
from lynx_parallel.spec.problems import KeyPath, Problems, nearest, shown_path, shown_value
from lynx_parallel.spec.subjects import face_gaps, read_prompts, read_subjects
from lynx_parallel.spec.table import Table
from lynx_parallel.spec.validate import read_model
from lynx_parallel.spec.yaml_lines import Document, read_yaml

_BARE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)


def load_campaign(
    manifest: Path | str, overrides: Sequence[str] = (), only: Sequence[str] = ()
) -> Campaign:
    """Reads a manifest, its pipeline file, prompts and table, and expands them to shots.

    Args:
        manifest: a path, or the bare name of a shipped manifest (its output then is ``./renders/<name>``).
        overrides: ``--set`` options, ``sampling.seed=7``; they win over everything, except that they
            leave the seeds given by ``seeds:`` or a table's seed column alone.
        only: ``--only`` patterns on ``subject/prompt`` or the output name.

    Raises:
        InputErrors: all mistakes, one line each.
    """
    problems = Problems()
    forced = read_overrides(overrides, problems)
    path, output = _find_manifest(manifest)
    document = read_yaml(path, problems)
    problems_or_stop(problems, document)
    assert document is not None
    reader = _Reader(document, forced, problems)
    campaign = reader.campaign(output)
    problems.raise_if_any()
    assert campaign is not None
    shots = select(campaign.shots, only, problems)
    problems.raise_if_any()
    return _replace_shots(campaign, shots)
