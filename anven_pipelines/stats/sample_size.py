"""How many pairs a non-inferiority test needs, before any is measured."""

from __future__ import annotations

import math
from typing import Literal

from anven_pipelines.stats.distributions import normal_quantile

MarginKind = Literal["absolute", "relative"]


def pairs_for_margin(
    *,
    margin: float,
    baseline: float,
    discordance: float,
    level: float,
    power: float,
    design_effect: float = 1.0,
    kind: MarginKind = "absolute",
) -> int:
    """Pairs with which two equally good arms pass a non-inferiority test.

    n = design_effect x (z(level) + z(power))^2 x discordance / margin^2, rounded up, the margin in score points. For
    clusters of unequal size it promises too much: `anven_pipelines.stats.simulated_power` plans those.

    Args:
        margin: Acceptable loss: in score points (0.024), or as a share of the baseline (0.03) if `kind` is "relative".
        baseline: Mean score that is expected of the legacy, in (0, 1].
        discordance: Share of pairs that the arms get differently right, in (0, 1].
        level: One-sided error rate, below 0.5.
        power: Chance to pass, above `level`.
        design_effect: Variance with clusters over variance without, at least 1: about 1 + (m - 1) x correlation for
            clusters of m items.
        kind: "absolute" for score points, "relative" for a share of the baseline; 3 % of 0.8 are 0.024 points.

    Returns:
        Number of pairs.

    Raises:
        ValueError: an argument is out of range.

    Source:
        Nam (1997), Biometrics 53:1422, for equal arms.
    """
    points = margin * baseline if kind == "relative" else margin
    spread = _spread(baseline, discordance, level, power, design_effect)
    if not 0 < points <= baseline:
        message = f"{kind} margin {margin} is {points:g} points; above 0 and up to the baseline, {baseline}, is needed"
        raise ValueError(message)
    # Far below one pair: a whole number must not be rounded up because of the last bits.
    return math.ceil(spread / points**2 - 1e-9)


def margin_for_pairs(
    *,
    pairs: int,
    baseline: float,
    discordance: float,
    level: float,
    power: float,
    design_effect: float = 1.0,
    kind: MarginKind = "absolute",
) -> float:
    """Smallest margin that two equally good arms pass with that many pairs; the inverse of `pairs_for_margin`.

    Args:
        pairs: Number of pairs, at least 1.
        baseline: Mean score that is expected of the legacy, in (0, 1].
        discordance: Share of pairs that the arms get differently right, in (0, 1].
        level: One-sided error rate, below 0.5.
        power: Chance to pass, above `level`.
        design_effect: Variance with clusters over variance without, at least 1.
        kind: "absolute" for score points, "relative" for a share of the baseline.

    Returns:
        The margin; one above the baseline (absolute) or 1 (relative) says that no margin can be shown.

    Raises:
        ValueError: an argument is out of range.

    Source:
        As `pairs_for_margin`.
    """
    if pairs < 1:
        message = f"{pairs} pairs; at least 1 is needed"
        raise ValueError(message)
    points = math.sqrt(_spread(baseline, discordance, level, power, design_effect) / pairs)
    return points / baseline if kind == "relative" else points


def _spread(baseline: float, discordance: float, level: float, power: float, design_effect: float) -> float:
    """Pairs x points^2 that carry the test, after checking what the formula rests on."""
    ranges = {
        "baseline": (baseline, 0 < baseline <= 1, "a mean score in (0, 1]"),
        "discordance": (discordance, 0 < discordance <= 1, "a share in (0, 1]"),
        "level": (level, 0 < level < 0.5, "a one-sided error rate between 0 and 0.5"),  # noqa: PLR2004 - a coin toss
        "power": (power, level < power < 1, "a chance between the level and 1"),
        "design_effect": (design_effect, 1 <= design_effect < math.inf, "a factor of at least 1"),
    }
    for name, (value, fits, needed) in ranges.items():
        if not fits:
            message = f"{name} is {value}; {needed} is needed"
            raise ValueError(message)
    return design_effect * (normal_quantile(power) - normal_quantile(level)) ** 2 * discordance
