"""What follows a run: the report, the summary in words and as JSON, and the user's own command."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TextIO

import typer

from lynx_parallel.engine.isolation import users_environment
from lynx_parallel.errors import FAULT_CODE
from lynx_parallel.text import counted, shown_path

if TYPE_CHECKING:
    from lynx_parallel.engine.summary import Summary
    from lynx_parallel.inputs.manifest import Campaign
    from lynx_parallel.output.run_status import RunStatus
    from lynx_parallel.view.metrics_file import MetricsFile


class Ended:
    """The result of a campaign whose run has ended.

    Args:
        title: how lines call the campaign; empty if it is the only one.
        allow_blocked: whether blocked shots alone are no failure.
    """

    def __init__(self, campaign: Campaign, summary: Summary, title: str, *, allow_blocked: bool):
        self._title = title
        self.campaign = campaign
        self.summary = summary
        code = summary.exit_code
        self.exit_code = 0 if allow_blocked and code == 1 and not summary.failed else code

    def say(self, say: Callable[[str], None], *, with_failures: bool) -> None:
        """Prints the blocked shots and the counts.

        Args:
            with_failures: print the failed shots too.
        """
        summary, shown = self.summary, f"{self._title}: " if self._title else ""
        for name, reason in summary.failed if with_failures else ():
            say(f"{shown}{name}: failed: {reason}")
        for name, reason in summary.blocked:
            say(f"{shown}{name}: blocked: {reason}")
        for name, reason in summary.withheld:
            say(f"{shown}{name}: {reason}")
        retried = f", {summary.retries} tried again" if summary.retries else ""
        left = f", {summary.left} left" if summary.left else ""
        withheld = f", {len(summary.withheld)} withheld" if summary.withheld else ""
        again = "; run again to resume" if summary.left else ""
        say(
            f"{shown}{len(summary.rendered)} rendered, {len(summary.encoded)} encoded, "
            f"{len(summary.skipped)} already done, {len(summary.failed)} failed, "
            f"{len(summary.blocked)} blocked{withheld}{retried}{left} in {summary.seconds:.0f} s: "
            f"{shown_path(self.campaign.output)}{again}"
        )
        if summary.auditioned or summary.not_chosen:
            say(f"{shown}{summary.auditioned} auditioned, {len(summary.not_chosen)} not chosen")
            for line in correlation_lines(self.campaign):
                say(line)
        if summary.waiting:
            say(
                f"{shown}{counted(len(summary.waiting), 'take')} wait for a choice: "
                "pick in the report, then run again with --review review.csv"
            )
        if summary.candidates:
            accepted = max(len(summary.rendered), 1)
            renders = accepted + summary.candidates - len(summary.below)
            say(
                f"{shown}quality: {renders} renders for {counted(len(summary.rendered), 'shot')}, "
                f"{renders / accepted:.2f} per shot"
            )
        for name, similarity in summary.below:
            say(f"{shown}{name}: below the gate: {similarity}; its best attempt is kept")
        if made := summary.conditioning:
            kinds = ("subject", "reference", "identity", "text")
            counts = ", ".join(f"{kind} {made[kind]} made, {made[kind + ' kept']} reused" for kind in kinds)
            say(f"conditioning: {counts}")

    def as_json(self) -> dict[str, Any]:
        """Returns the summary for programs."""
        from lynx_parallel.inputs.notices import notices_as_json

        return {
            "output": str(self.campaign.output), **vars(self.summary),
            "fault_code": FAULT_CODE if self.summary.fault else "", "exit_code": self.exit_code,
            "warnings": notices_as_json(self.campaign.notices),
        }  # fmt: skip


def correlation_lines(campaign: Campaign) -> list[str]:
    """Returns how early scores of this model foretold final ones so far, over all runs."""
    from lynx_parallel.inputs.early_scores import correlations

    base = campaign.pipeline.model.base
    return [str(one) for one in correlations() if one.base == base]


def print_json(ended: Sequence[Ended], exit_code: int) -> None:
    """Prints the summary of a run: that of its campaign, or those of several under ``campaigns``."""
    each = [one.as_json() for one in ended]
    typer.echo(json.dumps(each[0] if len(each) == 1 else {"campaigns": each, "exit_code": exit_code}))


def end_metrics(metrics: MetricsFile, campaigns: Sequence[Campaign], exit_code: int) -> None:
    """Writes the last metrics. If no run has begun, they are counts of the output folders' files."""

    from lynx_parallel.output.folder import Output
    from lynx_parallel.output.journal import now
    from lynx_parallel.output.run_status import RunStatus
    from lynx_parallel.output.shot_states import count_states, shot_states

    def status() -> RunStatus:
        names = [[shot.name for shot in campaign.shots] for campaign in campaigns]
        each = [
            count_states(shot_states(Output(campaign.output), own, read=False))
            for campaign, own in zip(campaigns, names, strict=True)
        ]
        total, done, blocked = (
            sum(map(len, names)),
            sum(one["done"] for one in each),
            sum(one["blocked"] for one in each),
        )
        return RunStatus(
            "", ", ".join(str(campaign.path) for campaign in campaigns), socket.gethostname(), os.getpid(), now(),
            total=total, done=done, blocked=blocked, fraction=float(done + blocked == total),
        )  # fmt: skip

    metrics.end(exit_code, status)


def run_command(
    command: str, campaign: Campaign, summary: Summary | None, exit_code: int, fault: str = "", *, output: TextIO
) -> None:
    """Runs the user's command in a shell, with the result of the run in its environment.

    An error of it is a line on stderr and does not change the exit code.

    Args:
        summary: None if the run could not begin.
        fault: why the run ended; empty if it ended as planned.
        output: where the command's standard output goes.
    """
    import subprocess

    from lynx_parallel.output.posters import REPORT

    page = campaign.output / REPORT
    names: Sequence[str] = ("rendered", "encoded", "skipped", "failed", "blocked")
    counts = {name: str(len(getattr(summary, name)) if summary else 0) for name in names}
    told = {
        "manifest": str(campaign.path), "output": str(campaign.output), "exit_code": str(exit_code),
        "report": str(page) if page.is_file() else "", "left": str(summary.left if summary else 0),
        "seconds": f"{summary.seconds:.0f}" if summary else "0", "fault": fault or (summary.fault if summary else ""),
        **counts,
    }  # fmt: skip
    environment = {**users_environment(), **{f"LYNX_{name.upper()}": value for name, value in told.items()}}
    try:
        # Ray's output has taken the descriptors 1 and 2.
        ended = subprocess.run(
            command, shell=True, env=environment, stdout=output, stderr=sys.stderr, check=False
        ).returncode
    except OSError as error:
        print(f"--on-finish: {error}", file=sys.stderr)
    else:
        if ended:
            print(f"--on-finish: exit {ended}: {command}", file=sys.stderr)
