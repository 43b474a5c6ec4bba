"""What a rollout aims at: stages, limits, and the metrics that gate each step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, get_args

from anven_pipelines.domain.canonical import digest_of
from anven_pipelines.spec_rollout import Metric, Rollout, Stage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anven_pipelines.spec import Migration
    from anven_pipelines.spec_grading import OnlineJudge

METRICS: Final[tuple[Metric, ...]] = get_args(Metric)
MIRRORED_METRICS: Final[tuple[Metric, ...]] = ("errors", "contract", "cost")
"""What a mirrored request shows. Nobody judges its answer, and its clock is the gateway's and not a client's."""
SERVING: Final = ("target", "prompt", "gateway", "contract", "legacy.price")
"""What of a migration file says what the arms are and how they are judged: sections, or one field of a section.

Another target, or prompt, has proven nothing; another contract or price of legacy would move the measure under way.
"""


_OPERATION: Final = frozenset({"concurrency", "timeout", "api_key_env", "judgements_per_day"})
"""How a judge is asked; what it is asked, and who it is, decides its scores."""


def judge_outcome(judge: OnlineJudge) -> str:
    """Return the outcome of the feedback that carries a judge's scores, which no other judge and nobody else gives."""
    return f"judge-{digest_of([judge.model, judge.url, judge.rubric])[:16]}"


@dataclass(frozen=True, kw_only=True)
class RolloutPlan:
    """What a workload's rollout aims at; it never changes while the rollout goes on.

    Attributes:
        workload: Name of the workload.
        rollout: As declared in the migration file.
        metrics: Those that are judged; `contract` only where a form is declared.
        serving: Each of SERVING with its digest; those that an older release did not know are left out.
        edited: What has become of the migration file since; None where it still declares this plan.
    """

    workload: str
    rollout: Rollout
    metrics: tuple[Metric, ...]
    serving: tuple[tuple[str, str], ...] = ()
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
    def is_blind(self) -> bool:
        """Whether legacy never has traffic beside the target, which nothing can then be proven of."""
        return self.stages[0].share == 1

    @property
    def harm_level(self) -> float:
        """One-sided error rate of one metric in one stage, so that all of them together err at `rollout.level`.

        The watch after the last stage is one more: it begins a generation, and its evidence anew.
        """
        return self.rollout.level / (len(self.metrics) * (len(self.stages) + 1))

    def proof_level(self, metric: Metric, *, share: float | None) -> float:
        """One-sided error rate of one proof that a metric is no worse.

        It is half of `rollout.level` where mirrored requests may prove the metric, too.

        Args:
            metric: Which one.
            share: The target's; None or 1 where legacy has no traffic, and so none that is mirrored.
        """
        is_mirrored = bool(self.rollout.shadow_top_up) and metric in MIRRORED_METRICS and share not in (None, 1)
        return self.rollout.level / 2 if is_mirrored else self.rollout.level

    @property
    def decisive(self) -> dict[str, Any]:
        """What of the section `rollout` decides; who is told decides nothing, nor how a judge is asked."""
        decisive = self.rollout.model_dump(mode="json", exclude={"notify": True, "judge": set(_OPERATION)})
        # Releases that knew neither wrote plans, whose digests stay.
        if decisive["judge"] is None:
            del decisive["judge"]
        if not self.rollout.shadow_top_up:
            del decisive["shadow_top_up"]
        return decisive

    @property
    def digest(self) -> str:
        """Names the plan: a rollout goes on only under the plan that it began with."""
        serving = [dict(self.serving)] if self.serving else []
        return digest_of([self.workload, list(self.metrics), self.decisive, *serving])

    def written(self) -> dict[str, Any]:
        """Return the plan as JSON, for the event that begins an attempt; `plan_in` reads it."""
        rollout = self.rollout.model_dump(mode="json")
        return {"metrics": list(self.metrics), "rollout": rollout, "serving": dict(self.serving)}


def plan_of(migration: Migration) -> RolloutPlan:
    """Return the plan that a migration file declares."""
    formless = not migration.contract.json_object
    metrics = tuple(metric for metric in METRICS if not (metric == "contract" and formless))
    serving = tuple((name, digest_of(_declared(migration, name))) for name in SERVING)
    return RolloutPlan(workload=migration.workload, rollout=migration.rollout, metrics=metrics, serving=serving)


def plan_in(workload: str, written: Mapping[str, Any]) -> RolloutPlan:
    """Return the plan that `RolloutPlan.written` wrote down.

    Raises:
        pydantic.ValidationError: another release wrote it, with sections that this one does not know.
    """
    rollout = Rollout.model_validate(written["rollout"])
    serving = tuple(written.get("serving", {}).items())
    return RolloutPlan(workload=workload, rollout=rollout, metrics=tuple(written["metrics"]), serving=serving)


def read_plan(workload: str, written: Mapping[str, Any]) -> RolloutPlan | None:
    """Return the plan that was written down; None where another release wrote it, with what this one does not know."""
    try:
        return plan_in(workload, written)
    except (ValueError, LookupError, TypeError, AttributeError):  # pydantic's errors are ValueErrors
        return None


def in_place_of_unread(declared: RolloutPlan, stage: int | None) -> RolloutPlan:
    """Return a plan by which harm is judged where the attempt's own cannot be read, and nothing goes on.

    Args:
        declared: What the migration file declares now.
        stage: The stage that the attempt is in; a plan with fewer is taken to be in its last one.
    """
    stages = declared.stages
    more = [stages[-1]] * max(0, (stage or 0) + 1 - len(stages))
    rollout = declared.rollout.model_copy(update={"stages": [*stages, *more]})
    return replace(
        declared, rollout=rollout, edited="another release wrote the attempt's plan, which this one cannot read,"
    )


def edit_of(begun: RolloutPlan, declared: RolloutPlan) -> str | None:
    """Say what of a migration file is no longer as the attempt began with it; None where all is.

    Args:
        begun: The plan that the attempt began with.
        declared: What the file declares now.
    """
    now = dict(declared.serving)
    edited = dict.fromkeys(
        [
            *(["rollout"] if declared.decisive != begun.decisive else []),
            *(["contract"] if declared.metrics != begun.metrics else []),  # all that an older release wrote of it
            *(name for name, digest in begun.serving if now.get(name) != digest),
        ]
    )
    return f"the migration file's {' and '.join(edited)} changed" if edited else None


def _declared(migration: Migration, name: str) -> Any:  # noqa: ANN401 - a section is an object, a list or null
    """Return what of a section, or a field of one, is not the default: a later release may know more fields.

    So a default that a later release changes is no edit either.
    """
    section, _, field = name.partition(".")
    declared = migration.model_dump(mode="json", include={section}, exclude_defaults=True).get(section)
    return (declared or {}).get(field) if field else declared
