"""Asks before finished shots are made again for a reason that is not the user's own edit."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import typer

from lynx_parallel.errors import NotApproved
from lynx_parallel.text import counted

if TYPE_CHECKING:
    from lynx_parallel.cli.load import Loaded
    from lynx_parallel.inputs.records import Request
    from lynx_parallel.output.approvals import Approvals
    from lynx_parallel.plan.changes import Change
    from lynx_parallel.plan.plan import Plan

YES = "LYNX_YES"
"""Environment variable that approves everything if it is 1."""


def approve(changes: Sequence[Change], approvals: Approvals, yes: bool, say: Callable[[str], None]) -> None:
    """Prints which finished shots would be made again, and returns if that is approved.

    The user's own edits need no approval. Others are approved by an earlier approval, ``--yes``, ``LYNX_YES=1``, or an
    answer on the terminal. An approval is stored.

    Raises:
        NotApproved: it is not approved.
    """
    asked = [change for change in changes if change.causes and not approvals.cover(change.transitions)]
    by = "--yes" if yes else f"{YES}=1" if os.environ.get(YES) == "1" else ""
    terminal = _on_a_terminal()
    for change in changes:
        if change not in asked or by or terminal:  # the refusal says the same
            say(str(change))
    if not asked:
        return
    if not by and terminal and _agreed(f"Make {_count(asked)} again?"):
        by = "terminal"
    if not by:
        raise NotApproved([_refusal(asked)])
    approvals.add((one for change in asked for one in change.transitions), by, map(str, asked))


def approve_plan(loaded: Loaded, plan: Plan, request: Request, yes: bool, say: Callable[[str], None]) -> None:
    """Does for a campaign's plan what ``approve`` does.

    Raises:
        InputErrors: it is not approved.
    """
    from lynx_parallel.output.approvals import Approvals
    from lynx_parallel.output.folder import Output
    from lynx_parallel.plan.parts import changes_of_parts
    from lynx_parallel.plan.plan import TODO

    changes = changes_of_parts(loaded.parts, plan.of(*TODO), request.set)
    approve(changes, Approvals(Output(loaded.campaign.output).approvals), yes, say)


def _count(changes: Sequence[Change]) -> str:
    return counted(sum(len(change.names) for change in changes), "finished shot")


def _refusal(changes: Sequence[Change]) -> str:
    settings = dict.fromkeys(setting for change in changes for setting in change.settings)
    causes = dict.fromkeys(cause for change in changes for cause in change.causes)
    return (
        f"{_count(changes)} would be made again, not because of your edits: {', '.join(settings)}: "
        f"{'; '.join(cause.text for cause in causes)}. To keep the finished shots, "
        f"{' and '.join(cause.remedy for cause in causes)}. To make them again, add --yes or set {YES}=1."
    )


def _agreed(question: str) -> bool:
    try:
        return typer.confirm(question, err=True)
    except typer.Abort:  # Ctrl-C, or the end of the input
        return False


def _on_a_terminal() -> bool:
    try:
        return sys.stdin.isatty() and sys.stderr.isatty()
    except (AttributeError, ValueError):  # closed
        return False
