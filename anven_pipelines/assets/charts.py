"""Charts shown in asset metadata."""

import base64
import io
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import dagster as dg
import polars as pl

from anven_pipelines.domain.load_report import LoadReport
from anven_pipelines.domain.prompt_gain import Gain
from anven_pipelines.domain.quality import Quality
from anven_pipelines.domain.segments import Segment
from anven_pipelines.spec_load import ServiceLevel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Colour-blind safe (Okabe & Ito 2008); the outcome also stands in words beside each bar.
_COLOURS = {"not worse": "#009E73", "worse": "#D55E00", "unproven": "#56606B", "too few items": "#B8BEC5"}


def interval_chart(quality: Quality | None, segments: list[Segment]) -> dg.MarkdownMetadataValue:
    """Draw the difference with its interval, overall and per segment, beside the margin."""
    bars = [
        (label, each.estimate, each.interval, each.outcome)
        for label, each in (("all items", quality), *((f"{each.stratum} = {each.value}", each) for each in segments))
        if each is not None and each.estimate is not None and each.interval is not None
    ]
    if not bars or quality is None:
        return dg.MetadataValue.md("No interval to draw: too few measured items, or all of them sealed.")
    from matplotlib.figure import Figure  # noqa: PLC0415 - matplotlib takes 0.5 s to import

    figure = Figure(figsize=(8, 1.1 + 0.38 * len(bars)), layout="constrained")
    axes = figure.subplots()
    for height, (_, estimate, (lower, upper), outcome) in enumerate(reversed(bars)):
        axes.plot(
            [100 * lower, 100 * upper], [height, height], color=_COLOURS[outcome], linewidth=3, solid_capstyle="butt"
        )
        axes.plot(100 * estimate, height, "o", color=_COLOURS[outcome])
        axes.annotate(outcome, (100 * upper, height), xytext=(6, -3), textcoords="offset points", fontsize=8)
    axes.axvline(0, color="#333333", linewidth=0.8)
    if quality.margin_points is not None:
        axes.axvline(-100 * quality.margin_points, color="#D55E00", linestyle="--", linewidth=1, label="margin")
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), fontsize=8, frameon=False)
    axes.set_yticks(range(len(bars)), [label for label, *_ in reversed(bars)])
    axes.set_xlabel(
        f"target - legacy, score points ({quality.interval_level:.0%} interval; outcomes by segment after Holm)"
    )
    axes.margins(x=0.18, y=0.1)
    axes.spines[["top", "right"]].set_visible(False)
    return _image(figure, "interval chart")


def gain_chart(gains: Sequence[Gain]) -> dg.MarkdownMetadataValue:
    """Draw what each prompt gains on the validation items, with its interval."""
    bars = [(gain, gain.interval) for gain in gains if gain.interval is not None]
    if not bars:
        return dg.MetadataValue.md("No gain to draw: no better prompt was found, or too few validation items.")
    from matplotlib.figure import Figure  # noqa: PLC0415 - matplotlib takes 0.5 s to import

    figure = Figure(figsize=(8, 1.1 + 0.38 * len(bars)), layout="constrained")
    axes = figure.subplots()
    for height, (gain, interval) in enumerate(reversed(bars)):
        colour, words = _COLOURS["not worse" if gain.proven else "unproven"], "proven" if gain.proven else "not proven"
        axes.plot(
            [100 * interval.lower, 100 * interval.upper], [height, height], color=colour, linewidth=3,
            solid_capstyle="butt",
        )  # fmt: skip
        axes.plot(100 * interval.estimate, height, "o", color=colour)
        told = f"{words}: {gain.before:.3f} to {gain.after:.3f} on {gain.n} items"
        axes.annotate(told, (100 * interval.upper, height), xytext=(6, -3), textcoords="offset points", fontsize=8)
    axes.axvline(0, color="#333333", linewidth=0.8)
    axes.set_yticks(range(len(bars)), [gain.template for gain, _ in reversed(bars)])
    axes.set_xlabel(f"adapted - unchanged prompt, score points ({bars[0][1].level:.2%} intervals)")
    axes.set_ylim(-0.6, len(bars) - 0.4)
    axes.margins(x=0.45)
    axes.spines[["top", "right"]].set_visible(False)
    return _image(figure, "gain chart")


def power_chart(plan: pl.DataFrame) -> dg.MarkdownMetadataValue:
    """Draw POWER_PLAN: sealed items over the margin, a line for each share of discordant items."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - matplotlib takes 0.5 s to import

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for (discordance,), line in plan.sort("margin").partition_by("discordance", as_dict=True).items():
        axes.plot(100 * line["margin"], line["sealed_items"], "o-", label=f"{discordance:.0%} judged differently")
    declared = plan.filter("declared")
    axes.plot(100 * declared["margin"], declared["sealed_items"], "D", color="#D55E00", markersize=9, label="declared")
    axes.set_yscale("log")
    axes.set_xlabel("margin, %")
    axes.set_ylabel("independent sealed items")
    axes.legend(fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return _image(figure, "power plan")


def load_chart(report: LoadReport, slo: ServiceLevel) -> dg.MarkdownMetadataValue:
    """Draw goodput over the offered rate, and the p95 of the time to the first token beside its limit."""
    if not report.figures:
        return dg.MetadataValue.md("Nothing to draw: no rate was run.")
    from matplotlib.figure import Figure  # noqa: PLC0415 - matplotlib takes 0.5 s to import

    figure = Figure(figsize=(8, 3.6), layout="constrained")
    goodput, ttft = figure.subplots(ncols=2)
    highest = max(each.offered_rate for each in report.figures)
    goodput.plot(
        [0, highest], [0, highest], color="#B8BEC5", linestyle="--", linewidth=1, label="all within the limits"
    )
    for arm, colour in (("target", "#009E73"), ("legacy", "#56606B")):
        own = [each for each in report.figures if each.arm == arm]
        # None is drawn as a gap.
        goodput.plot(
            [each.offered_rate for each in own], _drawn(each.goodput for each in own), "o-", color=colour, label=arm
        )
        ttft.plot([each.offered_rate for each in own], _drawn(each.ttft_ms.p95 for each in own), "o-", color=colour)
    if slo.ttft_ms is not None:
        ttft.axhline(slo.ttft_ms, color="#D55E00", linestyle="--", linewidth=1)
    goodput.set_ylabel("requests per second within the limits")
    ttft.set_ylabel("p95 time to first token, ms")
    for axes in (goodput, ttft):
        axes.set_xlabel("offered requests per second")
        axes.spines[["top", "right"]].set_visible(False)
    goodput.legend(fontsize=8, frameon=False)
    return _image(figure, "load benchmark")


def _drawn(values: Iterable[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]


def _image(figure: "Figure", title: str) -> dg.MarkdownMetadataValue:
    """Write a figure into Markdown."""
    image = io.BytesIO()
    figure.savefig(image, format="png")
    return dg.MetadataValue.md(f"![{title}](data:image/png;base64,{base64.b64encode(image.getvalue()).decode()})")
