"""The load benchmark's report for a person at a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from rich.console import Console

    from anven_pipelines.domain.capacity import Capacity
    from anven_pipelines.domain.load import Percentiles, RateFigures, Saturation
    from anven_pipelines.domain.load_report import LoadReport

_JUDGEMENT: Final = {"within": "green", "beyond": "red", "unproven": "yellow", "unmeasured": "yellow"}


def show_load(report: LoadReport, console: Console) -> None:
    """Print the ladder of rates, the saturation points and the capacity."""
    if report.figures:
        console.print(_ladder(report.figures))
        console.print()
    for name, point in (("target", report.target), ("legacy", report.legacy)):
        if point is not None:
            console.print(f"{name}: {escape(_saturation(point))}", highlight=False, soft_wrap=True)
    if report.capacity is not None and report.capacity.rate_per_replica is not None:
        console.print(f"capacity: {_capacity(report.capacity)}", highlight=False, soft_wrap=True)
    console.print("\nlook at the run with `anven dev`", highlight=False)


def _ladder(figures: list[RateFigures]) -> Table:
    names = (
        "arm",
        "rate /s",
        "offered /s",
        "goodput /s",
        "within the limits",
        "TTFT p50/p95 ms",
        "per token p50/p95 ms",
    )
    table = Table(*names, "errors", "judgement", box=None, padding=(0, 2, 0, 0))
    for each in figures:
        share = each.within
        table.add_row(
            each.arm,
            f"{each.rate:g}",
            f"{each.offered_rate:.3g}",
            "unknown" if each.goodput is None else f"{each.goodput:.3g}",
            "unknown" if share is None else f"{share.estimate:.1%} ({share.lower:.1%} to {share.upper:.1%})",
            _two(each.ttft_ms),
            _two(each.inter_token_ms),
            f"{each.error_share:.1%}",
            f"[{_JUDGEMENT[each.judgement]}]{each.judgement}[/]",
        )
    return table


def _two(times: Percentiles) -> str:
    return " / ".join("unknown" if each is None else f"{each:,.1f}" for each in (times.p50, times.p95))


def _saturation(point: Saturation) -> str:
    if point.status == "unmeasured":
        return point.reason
    lower = "0" if point.sustained_rate is None else f"{point.sustained_rate:g}"
    upper = "" if point.beyond_rate is None else f" and {point.beyond_rate:g}"
    words = "between" if upper else "above"
    return f"saturation lies {words} {lower}{upper} requests per second: {point.reason}"


def _capacity(capacity: Capacity) -> str:
    said = [f"{capacity.rate_per_replica:g} requests per second and replica"]
    if capacity.demand.peak_rate is not None and capacity.replicas_for_peak is not None:
        said.append(f"{capacity.replicas_for_peak} for the log's busiest minute ({capacity.demand.peak_rate:.3g}/s)")
    if capacity.usd_per_1000_full is not None:
        said.append(f"{capacity.usd_per_1000_full:.4f} USD for 1,000 requests at full use")
    if capacity.usd_per_1000_logged is not None:
        said.append(f"{capacity.usd_per_1000_logged:.4f} USD for 1,000 of the log")
    return ", ".join(said)
