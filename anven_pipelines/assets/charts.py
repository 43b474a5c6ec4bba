"""Charts shown in asset metadata."""

import base64
import io
from typing import TYPE_CHECKING

import dagster as dg
import polars as pl

from anven_pipelines.domain.quality import Quality, Segment

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


def _image(figure: "Figure", title: str) -> dg.MarkdownMetadataValue:
    """Write a figure into Markdown."""
    image = io.BytesIO()
    figure.savefig(image, format="png")
    return dg.MetadataValue.md(f"![{title}](data:image/png;base64,{base64.b64encode(image.getvalue()).decode()})")
