"""Whether an adapted prompt is better than the unchanged one, on items that no search has seen.

Each template's candidate is tested once, against the unchanged prompt on the same items; the error rate is shared out
over the templates (Bonferroni) and over the workload's earlier looks at its validation items, so that the chance of
any false claim, whatever is tried, stays below the level. Candidates that prove nothing are dropped: there the
unchanged prompt stands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import numpy as np

from anven_pipelines.domain.errors import TooFewPairs
from anven_pipelines.stats.distributions import beta_quantile
from anven_pipelines.stats.paired import design_effect, difference_interval

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from anven_pipelines.stats.interval import Interval

RIGHT: Final = 1.0


class Compared(NamedTuple):
    """Scores of the same validation items, asked both ways.

    Attributes:
        template: Whose items they are.
        before: Scores in [0, 1] with the unchanged prompt, NaN where nothing was measured, shape (n,).
        after: Scores in [0, 1] with the candidate, NaN where nothing was measured, shape (n,).
        clusters: Conversation of each item, shape (n,); of the one golden dataset, so that equal names of two templates
            are one conversation.
    """

    template: str
    before: npt.NDArray[np.float64]
    after: npt.NDArray[np.float64]
    clusters: npt.NDArray[Any]

    def at_worst(self) -> Compared:
        """Count what was not measured against the candidate: as right before, as wrong after."""
        before, after = np.nan_to_num(self.before, nan=RIGHT), np.nan_to_num(self.after, nan=0.0)
        return self._replace(before=before, after=after)


class Unmeasured(NamedTuple):
    """Validation items whose answer was not measured, asked either way."""

    before: int
    after: int

    def __str__(self) -> str:
        """Say how they count; nothing where all were measured."""
        if not any(self):
            return ""
        return f"; not measured: {self.before} before, counted as right, and {self.after} after, counted as wrong"


class Gain(NamedTuple):
    """What a template's candidate gains.

    Attributes:
        template: The template.
        n: Validation items.
        before: Mean score of the unchanged prompt, of what was not measured 1; None without items.
        after: Mean score of the candidate, of what was not measured 0.
        interval: Of the difference; its lower bound lies above 0 with an error rate of `level`. None where too few
            items were there to say anything.
        level: One-sided error rate of this template's test.
        proven: Whether there is a gain.
        reason: In words.
        unmeasured: Items that were not measured.
    """

    template: str
    n: int
    before: float | None
    after: float | None
    interval: Interval | None
    level: float
    proven: bool
    reason: str
    unmeasured: Unmeasured = Unmeasured(0, 0)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        bounds = self.interval and {"lower": round(self.interval.lower, 6), "upper": round(self.interval.upper, 6)}
        means = {name: None if mean is None else round(mean, 6) for name, mean in self._means().items()}
        told = {"template": self.template, "n": self.n, **means, "gain": bounds, "level": round(self.level, 9)}
        return {**told, "proven": self.proven, "reason": self.reason, "unmeasured": self.unmeasured._asdict()}

    def _means(self) -> dict[str, float | None]:
        return {"before": self.before, "after": self.after}


class Guard(NamedTuple):
    """What is lost of the items that the unchanged prompt answers right.

    Attributes:
        status: `kept`: at most the margin is lost, proven; `broken`: anything else.
        right: Items that the unchanged prompt answers right.
        lost: How many of them score less with the adapted prompt.
        bound: Largest share lost that the data allow at the level; None where nothing was right.
        reason: In words.
        unmeasured: How many of the lost ones were not measured, before or after.
    """

    status: Literal["kept", "broken"]
    right: int
    lost: int
    bound: float | None
    reason: str
    unmeasured: int = 0


def level_of_look(level: float, *, earlier: int) -> float:
    """Return the error rate of a look at validation items that were looked at before.

    The k-th look gets level / (k (k + 1)), which adds up to the level however many follow.

    Args:
        level: Error rate of all looks together.
        earlier: Looks with other prompts before this one.
    """
    return level / ((earlier + 1) * (earlier + 2))


def judge_gains(compared: Sequence[Compared], *, level: float) -> list[Gain]:
    """Test each template's candidate for a gain.

    What was not measured counts as right before and as wrong after: missing answers prove nothing.

    Args:
        compared: One for each template whose prompt would change.
        level: One-sided error rate over all of them.

    Source:
        Bonferroni's inequality; the intervals are those of `difference_interval`.
    """
    each = level / max(1, len(compared))
    return [_judged(scores, level=each) for scores in compared]


def _judged(scores: Compared, *, level: float) -> Gain:
    n, worst = scores.before.size, scores.at_worst()
    unmeasured = Unmeasured(*(int(np.isnan(side).sum()) for side in (scores.before, scores.after)))
    before, after = (float(side.mean()) if n else None for side in (worst.before, worst.after))
    try:
        interval = difference_interval(worst.after, worst.before, clusters=scores.clusters, level=1 - 2 * level)
    except TooFewPairs as error:
        reason = f"{n} validation items are too few to prove anything ({error})"
        return Gain(scores.template, n, before, after, None, level, proven=False, reason=reason, unmeasured=unmeasured)
    proven = interval.lower > 0
    told = (
        f"{before:.3f} before, {after:.3f} after on {n} items: {interval.estimate:+.3f}, at least {interval.lower:+.3f}"
        f"{unmeasured}"
    )
    reason = told if proven else f"{told}; a gain is not proven"
    return Gain(scores.template, n, before, after, interval, level, proven=proven, reason=reason, unmeasured=unmeasured)


def judge_guard(compared: Sequence[Compared], *, margin: float, level: float) -> Guard:
    """Prove that little is lost of what the unchanged prompt answers right.

    What was not measured never counts as kept: an item whose answer is missing after is lost if it was right before,
    and one whose answer is missing before is lost unless it is right after, where it says nothing.

    Args:
        compared: The templates whose prompt is to change, at least one.
        margin: Largest share of them that may be lost.
        level: One-sided error rate.

    Source:
        Clopper and Pearson (1934), Biometrika 26:404, on as many items as carry the same information: the items over
        the design effect of their conversations, fractions and all (Korn and Graubard 1998, Survey Methodology
        24:193).
    """
    before, after = (np.concatenate([getattr(each, side) for each in compared]) for side in ("before", "after"))
    missing, after = np.isnan(before) | np.isnan(after), np.nan_to_num(after, nan=0.0)
    before = np.where(np.isnan(before), np.where(after < RIGHT, RIGHT, 0.0), before)
    guarded = before >= RIGHT
    unmeasured = int(missing[guarded].sum())
    right, lost = int(guarded.sum()), int((after[guarded] < before[guarded]).sum())
    if not right:
        return Guard("kept", 0, 0, None, "the unchanged prompt answers none of the validation items right")
    # A conversation is one, whichever templates ask in it: a bad day of it loses the answers of all of them.
    clusters = np.concatenate([each.clusters for each in compared])[guarded]
    try:
        effect = design_effect((after >= before)[guarded].astype(float), np.ones(right), clusters=clusters)
    except TooFewPairs:
        effect = right / len(set(clusters.tolist()))
    bound = beta_quantile(1 - level, lost / effect + 1, (right - lost) / effect) if lost < right else 1.0
    kept = bound <= margin
    words = "kept" if kept else "not proven to be kept"
    told = f", {unmeasured} of them not measured" if unmeasured else ""
    reason = f"{lost} of {right} right answers are lost{told}, at most {bound:.1%}; a margin of {margin:.1%} is {words}"
    return Guard("kept" if kept else "broken", right, lost, bound, reason, unmeasured)
