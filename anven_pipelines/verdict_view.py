"""The verdict for a person at a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from anven_pipelines.domain.sign_off import explain_burnt

if TYPE_CHECKING:
    from rich.console import Console

    from anven_pipelines.domain.quality import Quality
    from anven_pipelines.domain.sign_off import Verdict

_COLOURS: Final = {"GO": "green", "NO-GO": "red", "INCONCLUSIVE": "yellow"}
_STATUS: Final = {"met": "green", "not met": "red", "undecided": "yellow", "unmeasured": "yellow"}
_OUTCOME: Final = {"not worse": "green", "worse": "red", "unproven": "default", "too few items": "dim"}


def show(verdict: Verdict, console: Console) -> None:
    """Print the verdict, its criteria and its segments."""
    colour = _COLOURS[verdict.verdict]
    console.print(
        Panel.fit(f"[bold {colour}]{verdict.verdict}[/bold {colour}]  {verdict.workload}", border_style=colour)
    )
    criteria = Table("criterion", "status", "why", box=None, padding=(0, 2, 0, 0))
    for each in verdict.criteria:
        waived = " (waived)" if each.waived else ""
        criteria.add_row(each.name, f"[{_STATUS[each.status]}]{each.status}[/]{waived}", escape(each.reason))
    console.print(criteria)
    if verdict.segments:
        segments = Table(
            "segment", "items", "legacy", "target", "difference", "outcome", box=None, padding=(0, 2, 0, 0)
        )
        for segment in verdict.segments:
            segments.add_row(
                escape(f"{segment.stratum} = {segment.value}"),
                _counted(segment.n, segment.n_measured),
                *(_percent(share) for share in (segment.legacy_mean, segment.target_mean)),
                "unknown" if segment.estimate is None else f"{100 * segment.estimate:+.2f} points",
                f"[{_OUTCOME[segment.outcome]}]{segment.outcome}[/]",
            )
        console.print()
        console.print(segments)
    noise, quality = verdict.noise_floor, verdict.quality
    lines = (
        f"what was compared: {quality.estimand}, over {_counted(quality.n, quality.n_measured)} sealed items"
        + (f" in {quality.n_clusters:,} conversations" if quality.n_clusters < quality.n else "")
        + (f" (effective number {quality.n_effective:,.0f})" if quality.n_effective < quality.n - 0.5 else "")
        + (f"; {quality.method}" if quality.method else ""),
        quality.smallest_margin
        and f"power: these items can certify a margin of {_margin(quality)} at {quality.power:.0%} power, "
        "if equal models differ as often as these",
        verdict.families["attempts"],
        noise and f"noise floor, beside the margin of {_points(quality.margin_points)}: {noise['reason']}",
        explain_burnt(verdict),
    )
    for line in lines:
        if line:
            console.print(f"\n{escape(line)}", highlight=False, soft_wrap=True)
    console.print(
        f"\ngolden dataset {verdict.digests['golden_dataset'][:12]}; look at the run with `anven dev`", highlight=False
    )


def _margin(quality: Quality) -> str:
    margin = quality.smallest_margin
    return f"{margin:.1%} of legacy" if quality.margin_kind == "relative" else _points(margin)


def _counted(items: int, measured: int) -> str:
    return f"{items:,}" if measured == items else f"{measured:,} of {items:,}"


def _points(share: float | None) -> str:
    return "unknown size" if share is None else f"{100 * share:.2f} points"


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{share:.2%}"
