"""The comparison of quality in one sentence: what was proven, or what is missing to prove it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anven_pipelines.domain.quality import Imputation, Quality


def explain_quality(quality: Quality) -> str:
    """Say in one sentence what was proven about the mean score, or what is missing to prove it."""
    if quality.outcome == "too few items" or quality.interval is None:
        return _explain_too_few(quality)
    lower, upper = quality.interval
    found = (
        f"mean score {quality.target_mean:.2%} against {quality.legacy_mean:.2%}, difference "
        f"{_points(quality.estimate)} ({_points(lower)} to {_points(upper)}), "
        f"{_explain_margin(quality)}{_explain_imputation(quality.imputation)}"
    )
    if quality.outcome == "not worse":
        return f"{'better is proven' if quality.better else 'not worse than the margin is proven'}: {found}"
    if quality.outcome == "worse":
        return f"worse than the margin is proven: {found}"
    if quality.n_measured < quality.n:
        missing = f"{quality.n - quality.n_measured} of {quality.n} items are unmeasured"
        return (
            f"neither side is proven: {found}; {missing} and count against whatever is to be proven: "
            "get their answers and scores first"
        )
    if quality.n_needed is None:
        return f"neither side is proven and no feasible number of items would decide: {found}"
    return (
        f"neither side is proven: {found}; about {quality.items_still_needed:,} more items "
        f"({quality.n_needed:,} in all) would prove {quality.needed_to_prove} at 80 % power if the difference stays"
    )


def _explain_margin(quality: Quality) -> str:
    if quality.margin_kind == "absolute":
        return f"margin {_points(quality.margin_points, sign='')}"
    kept = quality.ratio_interval
    share = f"; {kept[0]:.1%} to {kept[1]:.1%} of legacy is kept, {1 - quality.margin:.1%} is needed" if kept else ""
    return f"margin {quality.margin:.1%} of legacy = {_points(quality.margin_points, sign='')}{share}"


def _explain_imputation(imputation: Imputation) -> str:
    if not imputation.items:
        return ""
    told = f"; {imputation.items} unmeasured items count as the worst case"
    if not imputation.changed:
        return f"{told}, which changed nothing"
    alone = "unknown" if imputation.p_not_worse_measured is None else f"{imputation.p_not_worse_measured:.2g}"
    return f"{told}, which changed the outcome (p of the measured ones alone {alone})"


def _explain_too_few(quality: Quality) -> str:
    if quality.n_measured < quality.n:
        return (
            f"only {quality.n_measured} of {quality.n} items were measured in both arms, too few for any test: get the "
            "missing answers and scores first"
        )
    found = f"too few for any test: {quality.shortage}"
    if quality.n_needed is None:
        return found
    return f"{found}; about {quality.n_needed:,} in all would prove equal models not worse at 80 % power"


def _points(value: float | None, *, sign: str = "+") -> str:
    return "unknown" if value is None else f"{100 * value:{sign}.2f} points"
