"""Charts shown in asset metadata."""

import base64
import io

import dagster as dg

from anven_pipelines.domain.quality import Quality, Segment

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
    image = io.BytesIO()
    figure.savefig(image, format="png")
    return dg.MetadataValue.md(
        f"![interval chart](data:image/png;base64,{base64.b64encode(image.getvalue()).decode()})"
    )
