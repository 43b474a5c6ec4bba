"""The rollout of a migration: the canary's stages, what it may cost production, and what gates it."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Final, Literal

from pydantic import Field, model_validator

from anven_pipelines.spec_grading import OnlineJudge
from anven_pipelines.spec_notify import Receiver
from anven_pipelines.spec_values import Duration, Level, Section, Share

Strategy = Literal["canary", "blue_green", "phased", "big_bang"]
Metric = Literal["quality", "errors", "safety", "contract", "ttft", "latency", "cost"]

_LEAST_UNITS: Final = 500
"""Fewest units (`gateway.unit`) an arm before a stage may be left: a rare failure is not seen in fewer."""


class Stage(Section):
    """One step of the canary."""

    share: float = Field(gt=0, le=1)
    """Share of traffic that the target serves."""
    soak: Duration
    """Shortest stay in the stage."""
    widened: float = Field(default=1.0, ge=1, le=10)
    """Every limit is so many times as wide where this stage is to be left: few are exposed to a small share.

    A roll back never waits for it: harm is always judged at the limit itself.
    """
    approvals: int = Field(default=0, ge=0, le=10)
    """People who have to approve before the stage is entered; none for the first, which somebody starts."""


def _stages(*steps: tuple[float, int, float]) -> list[Stage]:
    return [Stage(share=share, soak=timedelta(hours=hours), widened=widened) for share, hours, widened in steps]


STAGES: Final[dict[Strategy, list[Stage]]] = {
    "canary": _stages((0.05, 24, 4.0), (0.25, 48, 2.0), (0.50, 24, 1.0), (1.0, 168, 1.0)),
    # All at once, after a look at a few: the other side stays up, one step away.
    "blue_green": _stages((0.05, 4, 4.0), (1.0, 168, 1.0)),
    # Waves of users, each as long as a working week shows.
    "phased": _stages((0.10, 168, 2.0), (0.30, 168, 1.0), (0.60, 168, 1.0), (1.0, 336, 1.0)),
    "big_bang": _stages((1.0, 168, 1.0)),
}
"""The stages of each strategy where the file names none. The first stage of 1.0 ends with the stability epoch."""


class Limits(Section):
    """How much worse than the concurrent legacy arm the target may be; beyond it is harm, within it is proof."""

    quality: Share = 0.025
    """Loss of mean score, as a share of the legacy arm's mean."""
    errors: Share = 0.01
    """More failed requests, in points of a share (0.01 is one more in a hundred)."""
    safety: Share = 0.005
    """More requests flagged as unsafe, in points of a share."""
    contract: Share = 0.01
    """More answers without the form that `contract` declares, in points of a share."""
    ttft_ms: float = Field(default=200.0, ge=0, allow_inf_nan=False)
    """Increase of p95 time to first token, in milliseconds."""
    latency_ms: float = Field(default=1000.0, ge=0, allow_inf_nan=False)
    """Increase of p95 latency, in milliseconds."""
    cost: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Increase of the cost of a request, as a share of the legacy arm's mean."""


class Metrics(Section):
    """Where the controller reads what production shows."""

    source: Literal["event_log", "prometheus"] = "event_log"
    """`event_log`: the gateway's own events. `prometheus`: its counters, as a server scraped them, which is weaker."""
    url: str | None = Field(default=None, pattern=r"^https?://[^\s@?#]+$")
    """Base URL of the Prometheus server, such as http://prometheus:9090, with its path prefix; no key stands in it."""
    token_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    """Name of the environment variable that holds a bearer token; the token itself never stands in a file."""
    match: dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], str] = Field(default_factory=dict)
    """Labels that tell this gateway's series from others with the same workload, such as {job: anven-gateway}."""
    timeout: Duration = Field(default=timedelta(seconds=10), json_schema_extra={"default": "10s"})
    """Longest wait for all answers of one look; no answer is evidence of nothing."""

    @model_validator(mode="after")
    def _is_reachable(self) -> Metrics:
        if (self.source == "prometheus") != (self.url is not None):
            message = (
                f"`url` is needed with `source: prometheus` and only there, found {self.source} and url {self.url}"
            )
            raise ValueError(message)
        if not timedelta(0) < self.timeout <= timedelta(minutes=2):
            message = f"a `timeout` above 0 and up to 2m is needed, found {self.timeout.total_seconds():g} s"
            raise ValueError(message)
        return self


class Rollout(Section):
    """The canary plan; the controller follows the verdict."""

    strategy: Strategy = "canary"
    """Which stages where `stages` names none: `canary`, `blue_green`, `phased` waves or `big_bang`."""
    stages: list[Stage] | None = Field(default=None, min_length=1)
    """Shares must rise, and the last one is 1."""
    limits: Limits = Limits()
    level: Level = 0.05
    """Chance that a target that is as good as legacy is ever rolled back, over all metrics, stages and looks."""
    least_units: int = Field(default=_LEAST_UNITS, ge=1)
    """Fewest units (`gateway.unit`: users or conversations) an arm before a stage may be left."""
    recent: Duration = Field(default=timedelta(hours=6), json_schema_extra={"default": "6h"})
    """Harm that begins late is looked for in stretches of this length, at least 1m, beside the stage as a whole."""
    settle: Duration = Field(default=timedelta(minutes=10), json_schema_extra={"default": "10m"})
    """A unit counts with the requests that it makes within this time after its first one, and only then."""
    judged: float = Field(default=1.0, gt=0, le=1)
    """Share of the units, drawn by hash, that are due for a score."""
    label_delay: Duration = Field(default=timedelta(hours=1), json_schema_extra={"default": "1h"})
    """How long a score or flag may take after a unit has settled; quality and safety wait for it."""
    labelled: Share = 0.9
    """Share of the units due for a score that must have one, in each arm."""
    stale: Duration = Field(default=timedelta(minutes=5), json_schema_extra={"default": "5m"})
    """Evidence older than this is unknown."""
    fallback: Share = 0.02
    """Largest share of the target's requests that legacy answered in its place, before the ramp stops."""
    drill_age: Duration = Field(default=timedelta(days=7), json_schema_extra={"default": "7d"})
    """Oldest rollback drill that still counts."""
    drill_s: float = Field(default=2.0, gt=0, allow_inf_nan=False)
    """Longest time to 100 % legacy that a drill may measure, in seconds: one in which the gateway's workers follow
    their traffic file, and one for writing it and for seeing that they did."""
    shadow_top_up: float = Field(default=0.0, ge=0, le=0.9)
    """Largest part of the target's `least_units` that legacy's mirrored requests (`shadow` of the route) stand in for.

    Above 0, they may also prove that errors, contract and cost are no worse; they never roll back.
    """
    metrics: Metrics = Metrics()
    """Where the evidence comes from: the gateway's event log, or a Prometheus server."""
    judge: OnlineJudge | None = None
    """Scores one answer of each unit that is due for a score (`judged`); only its scores count for `quality` then.

    Needs `gateway.store_text: true` and the extra `eval`.
    """
    waive: list[Literal[Metric, "drill"]] = Field(default_factory=list)
    """What does not gate an advance; every decision says so. A waived metric still rolls back on proven harm."""
    notify: list[Receiver] = Field(default_factory=list, max_length=20)
    """Who is told of every change and of what holds the rollout; an edit of it is no edit of the plan."""

    @property
    def steps(self) -> list[Stage]:
        """The stages, declared or those of the strategy."""
        return self.stages or STAGES[self.strategy]

    @model_validator(mode="after")
    def _shares_rise_to_all(self) -> Rollout:
        shares = [stage.share for stage in self.steps]
        if shares != sorted(set(shares)):
            message = f"stages with rising shares are needed, found {shares}"
            raise ValueError(message)
        if self.steps[0].approvals:
            message = (
                f"the first stage begins with `anven rollout start`, which nobody can approve before: approvals of 0 "
                f"are needed there, found {self.steps[0].approvals}"
            )
            raise ValueError(message)
        if self.judge is not None and self.metrics.source == "prometheus":
            message = (
                "a `judge` needs `metrics.source: event_log`, found prometheus: no counter tells a judge's scores from "
                "others"
            )
            raise ValueError(message)
        if self.recent < timedelta(minutes=1):
            message = f"`recent` of at least 1m is needed, found {self.recent.total_seconds():g} s"
            raise ValueError(message)
        if self.shadow_top_up and self.metrics.source == "prometheus":
            message = (
                f"`shadow_top_up` of 0 is needed with `source: prometheus`, found {self.shadow_top_up:g}: counters do "
                "not pair a mirrored request with its own; `source: event_log` does"
            )
            raise ValueError(message)
        if shares[-1] != 1:
            message = f"a last stage of share 1.0 is needed, found {shares[-1]:g}"
            raise ValueError(message)
        return self
