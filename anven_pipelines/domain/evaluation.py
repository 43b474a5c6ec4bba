"""Both arms side by side: scores, what of them is missing, and the output contract."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, NamedTuple, get_args

import polars as pl
from pydantic import BaseModel, ConfigDict

from anven_pipelines.domain.table import Column, Table
from anven_pipelines.spec import Stratum
from anven_pipelines.stats.proportions import mcnemar_exact

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

TRAFFIC: Final = "traffic"
"""Role of the items that stand for the traffic; those of other roles are reported apart."""
STRATA: Final[tuple[Stratum, ...]] = get_args(Stratum)

SCORES = Table(
    "scores",
    (
        Column("item_id", pl.String, "Golden item."),
        Column("cluster", pl.String, "Conversation of the item, or the item itself; the unit of independence."),
        Column("split", pl.String, "`open`, or `sealed` until sign-off."),
        Column("application", pl.String, "Stratum: application that made the call."),
        Column("endpoint", pl.String, "Stratum: API endpoint of the call."),
        Column("task", pl.String, "Stratum: task the log names."),
        Column("length_band", pl.String, "Stratum: length of the prompt."),
        Column("risk", pl.String, "Stratum: risk tier of the call."),
        Column("language", pl.String, "Stratum: language of the prompt."),
        Column("weight", pl.Float64, "Calls of the traffic that the item stands for."),
        Column("role", pl.String, "`traffic`, or the quota that the item was added for."),
        Column("legacy_score", pl.Float64, "Score of the legacy answer in [0, 1]; NULL is not measured."),
        Column("target_score", pl.Float64, "Score of the target answer in [0, 1]; NULL is not measured."),
        Column("legacy_reason", pl.String, "Why the legacy answer scored 0 or was not measured."),
        Column("target_reason", pl.String, "Why the target answer scored 0 or was not measured."),
        Column("legacy_grades", pl.String, "Score of each grader, JSON."),
        Column("target_grades", pl.String, "Score of each grader, JSON."),
        Column("legacy_contract", pl.Boolean, "The legacy answer keeps the output contract; NULL is not measured."),
        Column("target_contract", pl.Boolean, "The target answer keeps the output contract; NULL is not measured."),
        Column("legacy_contract_reason", pl.String, "How the legacy answer breaks the contract."),
        Column("target_contract_reason", pl.String, "How the target answer breaks the contract."),
        Column("legacy_ttft_ms", pl.Float64, "Time to first token of the legacy answer, milliseconds."),
        Column("target_ttft_ms", pl.Float64, "Time to first token of the target answer, milliseconds."),
        Column("legacy_latency_ms", pl.Float64, "Time to the last token of the legacy answer, milliseconds."),
        Column("target_latency_ms", pl.Float64, "Time to the last token of the target answer, milliseconds."),
    ),
)


class Arm(NamedTuple):
    """One model's answers with their grades and contract checks, one row per golden item each."""

    answers: pl.DataFrame
    grades: pl.DataFrame
    contract: pl.DataFrame


class Finding(BaseModel):
    """A part of the verdict: immutable and free of NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Missingness(Finding):
    """Whether the arms were measured equally often."""

    legacy_unmeasured: int
    target_unmeasured: int
    only_target_unmeasured: int
    only_legacy_unmeasured: int
    p_difference: float
    differs: bool
    reasons: dict[str, int]


class ContractReport(Finding):
    """How often each arm keeps the output contract; apart from the score."""

    declared: bool
    legacy_kept: float | None = None
    target_kept: float | None = None
    n_measured: int = 0
    broken_by_target_only: int = 0
    broken_by_legacy_only: int = 0


def side_by_side(golden: pl.DataFrame, legacy: Arm, target: Arm) -> pl.DataFrame:
    """Return the SCORES table: one row per golden item, in golden order."""
    base = golden.select(pl.col("id").alias("item_id"), "cluster", "split", *STRATA, "weight", "role")
    for name, arm in (("legacy", legacy), ("target", target)):
        columns = (
            arm.answers.select("item_id", "ttft_ms", "latency_ms")
            .join(arm.grades.select("item_id", "score", "reason", "grades"), on="item_id", how="left")
            .join(arm.contract.select("item_id", contract="kept", contract_reason="reason"), on="item_id", how="left")
        )
        renamed = columns.rename({column: f"{name}_{column}" for column in columns.columns if column != "item_id"})
        base = base.join(renamed, on="item_id", how="left", maintain_order="left")
    return SCORES.conform(base)


def arm_of(scores: pl.DataFrame, name: Literal["legacy", "target"]) -> Arm:
    """Return one side of a SCORES table as an arm, to set it beside another."""
    columns = {column: column.removeprefix(f"{name}_") for column in SCORES.schema if column.startswith(f"{name}_")}
    side = scores.select("item_id", *columns).rename(columns)
    return Arm(
        answers=side.select("item_id", "ttft_ms", "latency_ms"),
        grades=side.select("item_id", "score", "reason", "grades"),
        contract=side.select("item_id", kept="contract", reason="contract_reason"),
    )


def compare_missingness(scores: pl.DataFrame, *, level: float) -> Missingness:
    """Test with McNemar's exact test whether one arm is measured less often than the other."""
    legacy = scores["legacy_score"].is_null()
    target = scores["target_score"].is_null()
    only_target = int((target & ~legacy).sum())
    only_legacy = int((legacy & ~target).sum())
    p_difference = mcnemar_exact(only_target, only_legacy)
    reasons = scores.select(
        pl.concat([scores.filter(legacy)["legacy_reason"], scores.filter(target)["target_reason"]]).alias("reason")
    )["reason"].value_counts(sort=True)
    return Missingness(
        legacy_unmeasured=int(legacy.sum()),
        target_unmeasured=int(target.sum()),
        only_target_unmeasured=only_target,
        only_legacy_unmeasured=only_legacy,
        p_difference=rounded(p_difference),
        differs=p_difference < level,
        reasons={str(reason): int(count) for reason, count in sorted(reasons.iter_rows(), key=str)},
    )


def report_contract(scores: pl.DataFrame, *, declared: bool) -> ContractReport:
    """Count kept and broken output contracts over items where both arms answered."""
    measured = scores.filter(pl.col("legacy_contract").is_not_null() & pl.col("target_contract").is_not_null())
    if measured.is_empty():
        return ContractReport(declared=declared)
    legacy, target = measured["legacy_contract"], measured["target_contract"]
    return ContractReport(
        declared=declared,
        legacy_kept=rounded(float(legacy.cast(pl.Float64).to_numpy().mean())),
        target_kept=rounded(float(target.cast(pl.Float64).to_numpy().mean())),
        n_measured=measured.height,
        broken_by_target_only=int((legacy & ~target).sum()),
        broken_by_legacy_only=int((~legacy & target).sum()),
    )


def rounded(value: float) -> float:
    """Round to the sixth decimal: below it, the last bits differ between processors, and a verdict must not."""
    return round(value, 6) + 0.0


def cluster_codes(scores: pl.DataFrame) -> npt.NDArray[np.int64] | None:
    """Return each row's conversation as a number, shape (n,); None where every row stands alone."""
    if scores["cluster"].n_unique() == scores.height:
        return None
    return scores["cluster"].rank("dense").cast(pl.Int64).to_numpy()
