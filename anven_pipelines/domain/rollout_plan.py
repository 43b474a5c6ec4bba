"""What a rollout aims at: stages, limits, and the metrics that gate each step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, get_args

from anven_pipelines.domain.canonical import digest_of
from anven_pipelines.spec_rollout import Metric, Rollout, Stage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anven_pipelines.spec import Migration

METRICS: Final[tuple[Metric, ...]] = get_args(Metric)


@dataclass(frozen=True, kw_only=True)
class RolloutPlan:
    """What a workload's rollout aims at; it never changes while the rollout goes on.

    Attributes:
        workload: Name of the workload.
        rollout: As declared in the migration file.
        metrics: Those that are judged; `contract` only where a form is declared.
        edited: What has become of the migration file since; None where it still declares this plan.
    """

    workload: str
    rollout: Rollout
    metrics: tuple[Metric, ...]
    edited: str | None = None

    @property
    def stages(self) -> list[Stage]:
        """The stages, in order."""
        return self.rollout.steps

    @property
    def gating(self) -> tuple[Metric, ...]:
        """The metrics that must be proven before a stage is left."""
        return tuple(metric for metric in self.metrics if metric not in self.rollout.waive)

    @property
    def smallest_share(self) -> float:
        """The smallest share that either arm has while both are asked; 0.5 where they never are."""
        return min((min(stage.share, 1 - stage.share) for stage in self.stages if stage.share < 1), default=0.5)

    @property
    def harm_level(self) -> float:
        """One-sided error rate of one metric in one stage, so that all of them together err at `rollout.level`.

        The watch after the last stage is one more: it begins a generation, and its evidence anew.
        """
        return self.rollout.level / (len(self.metrics) * (len(self.stages) + 1))

    @property
    def digest(self) -> str:
        """Names the plan: a rollout goes on only under the plan that it began with."""
        decisive = self.rollout.model_dump(mode="json", exclude={"notify"})  # who is told decides nothing
        return digest_of([self.workload, list(self.metrics), decisive])

    def written(self) -> dict[str, Any]:
        """Return the plan as JSON, for the event that begins an attempt; `plan_in` reads it."""
        return {"metrics": list(self.metrics), "rollout": self.rollout.model_dump(mode="json")}


def plan_of(migration: Migration) -> RolloutPlan:
    """Return the plan that a migration file declares."""
    formless = not migration.contract.json_object
    metrics = tuple(metric for metric in METRICS if not (metric == "contract" and formless))
    return RolloutPlan(workload=migration.workload, rollout=migration.rollout, metrics=metrics)


def plan_in(workload: str, written: Mapping[str, Any]) -> RolloutPlan:
    """Return the plan that `RolloutPlan.written` wrote down.

    Raises:
        pydantic.ValidationError: another release wrote it, with sections that this one does not know.
    """
    rollout = Rollout.model_validate(written["rollout"])
    return RolloutPlan(workload=workload, rollout=rollout, metrics=tuple(written["metrics"]))
