"""The forecast of a run, for plan and render."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from lynx_parallel.errors import InputErrors

if TYPE_CHECKING:
    from collections.abc import Callable

    from lynx_parallel.cli.load import Loaded
    from lynx_parallel.engine.summary import Summary
    from lynx_parallel.inputs.cluster import ClusterSpec
    from lynx_parallel.plan.forecast import Forecast
    from lynx_parallel.plan.plan import Plan


def forecast_of(loaded: Loaded, planned: Plan, cluster: ClusterSpec, card: str | None) -> Forecast:
    """Returns the forecast of what is left to do.

    Args:
        card: of ``--card``; None for this machine's.

    Raises:
        InputErrors: an unknown card.
    """
    from lynx_parallel.inputs.cards import named_card
    from lynx_parallel.plan.forecast import machine_of, make_forecast

    machine = machine_of(cluster, named_card(card) if card is not None else None)
    return make_forecast(loaded.parts, planned, cluster, machine)


def due(forecast: Forecast, deadline: str | None, now: datetime) -> str:
    """Returns a warning if the run ends after ``--deadline``, else nothing.

    Raises:
        InputErrors: not a time.
    """
    from lynx_parallel.plan.forecast import late, read_deadline

    if deadline is None:
        return ""
    at = read_deadline(deadline, now)
    if at is None:
        raise InputErrors([f"--deadline {deadline}: must be a time such as 06:00, or 2026-11-28T06:00"])
    return late(forecast, at, now)


def announce(
    loaded: Loaded,
    planned: Plan,
    cluster: ClusterSpec,
    card: str | None,
    deadline: str | None,
    say: Callable[[str], None],
) -> None:
    """Prints how long a run will take, and a warning if that is longer than until the deadline.

    Raises:
        InputErrors: an unknown card, or not a time.
    """
    now = datetime.now().astimezone()
    forecast = forecast_of(loaded, planned, cluster, card)
    if forecast.seconds is not None:
        say(f"estimate: {forecast.in_all(now)}")
    if warning := due(forecast, deadline, now):
        say(f"warning: {warning}")


def remember_rates(loaded: Loaded, summary: Summary) -> None:
    """Stores how fast the shots of a run were made, for plans of other folders on this machine."""
    from lynx_parallel.output.folder import Output
    from lynx_parallel.plan.estimate import MOST_READ, fit, remember

    output, rendered = Output(loaded.campaign.output), set(summary.rendered)
    for part in loaded.parts:
        names = [shot.name for shot in part.campaign.shots if shot.name in rendered]
        sidecars = [sidecar for name in names[-MOST_READ:] if (sidecar := output.sidecar(name)) is not None]
        devices = {rank["device"] for sidecar in sidecars for rank in sidecar["ranks"]}
        if len(devices) == 1 and (rates := fit(part, sidecars)):
            remember(part, devices.pop(), rates)
