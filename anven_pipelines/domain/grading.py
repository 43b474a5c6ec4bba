"""Scores of answers against their ground truth, and the contract on their form.

A score is in [0, 1] or None, "not gradable". Whose fault it is decides which:

- the model's fault is a score of 0: an empty answer, no number, no JSON, a missing field, no match of a pattern;
- the measurement's fault is not gradable: no ground truth, a ground truth the grader cannot compare with, an answer
  that was never obtained, a judge that failed, a pattern that takes too long.

The contract is reported apart from the score: an answer can be right and still break what a program expects.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, NamedTuple, assert_never

import polars as pl
import regex  # type: ignore[import-untyped] # in place of re for its timeout

from anven_pipelines.domain.canonical import canonical_json
from anven_pipelines.domain.comparison import Comparison, is_equal
from anven_pipelines.domain.json_answer import fenced_blocks, find_field, missing_fields, strict_object
from anven_pipelines.domain.number_answer import only_number
from anven_pipelines.spec_grading import (
    ExactGrader,
    Grader,
    JsonFieldGrader,
    NumberGrader,
    RagasGrader,
    RegexGrader,
    TextGrader,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anven_pipelines.spec import Contract

DeterministicGrader = ExactGrader | TextGrader | NumberGrader | JsonFieldGrader | RegexGrader

# Part of every verdict's digest: raise it with any change that can change a score or a contract check.
GRADER_VERSION: Final = "1"

# Patterns come from migration files, and a nested quantifier can take longer than the universe on 30 characters.
PATTERN_SECONDS: Final = 1.0

GRADES: Final = pl.Schema({"item_id": pl.String, "score": pl.Float64, "reason": pl.String, "grades": pl.String})
CONTRACT_CHECKS: Final = pl.Schema({"item_id": pl.String, "kept": pl.Boolean, "reason": pl.String})

NO_ANSWER: Final = "no answer was obtained"
EMPTY_ANSWER: Final = "the answer is empty"


class Grade(NamedTuple):
    """A score in [0, 1] with the reason for a zero, or None with the reason why nothing was measured."""

    score: float | None
    reason: str | None


_OUTCOMES: Final[Mapping[bool | None, Grade]] = {
    True: Grade(1.0, None),
    False: Grade(0.0, "differs from the ground truth"),
    None: Grade(0.0, "no number in the answer"),
}


class ContractCheck(NamedTuple):
    """Whether an answer kept its contract, with the reason where it did not or where that was not measured."""

    kept: bool | None
    reason: str | None


def grader_name(grader: Grader, index: int) -> str:
    """Name a grader in reports and in `grades`: what it looks at, and its place in the list after the first.

    Args:
        grader: The grader.
        index: Its index in the migration file's list, which makes the name unique.
    """
    match grader:
        case JsonFieldGrader():
            name = f"{grader.kind}:{grader.field}"
        case RagasGrader():
            name = f"{grader.kind}:{grader.metric}"
        case _:
            name = grader.kind
    return f"{name}#{index + 1}" if index else name


def grade(grader: DeterministicGrader, *, output: str | None, ground_truth: str | None) -> Grade:
    """Score one answer.

    Args:
        grader: Any grader that needs no judge.
        output: The answer; None where none was obtained.
        ground_truth: What is right; None or blank where it is not known.
    """
    if output is None:
        return Grade(None, NO_ANSWER)
    comparison = _comparison(grader)
    if (gap := _gap(ground_truth, comparison)) is not None:
        return Grade(None, gap)
    if not output.strip():
        return Grade(0.0, EMPTY_ANSWER)
    try:
        found, reason = _found(grader, output)
    except TimeoutError:
        return Grade(None, f"the pattern took longer than {PATTERN_SECONDS:g} s")
    except regex.error as error:
        return Grade(None, f"the pattern cannot be used: {error}")
    return Grade(0.0, reason) if reason else _OUTCOMES[is_equal(found, ground_truth or "", comparison)]


def grade_rows(
    graders: Sequence[Grader], answers: pl.DataFrame, golden: pl.DataFrame, *, judged: Mapping[str, pl.DataFrame]
) -> pl.DataFrame:
    """Score one arm's answers to a golden dataset, one row per golden item, in its order.

    Args:
        graders: The migration file's graders.
        answers: Columns item_id, status, reason, output; an item without a row has no answer.
        golden: Columns id, ground_truth.
        judged: For each grader that needs a judge, by name: columns item_id, score, reason.

    Returns:
        item_id; score, the mean over the graders, NULL where any of them is not gradable; reason, why a score is
        NULL or a grader gave less than 1; grades, JSON of {grader name: score or null}.
    """
    names = [grader_name(grader, index) for index, grader in enumerate(graders)]
    verdicts = {name: _judged_grades(frame) for name, frame in judged.items()}
    rows = []
    # A loop over rows: finding JSON and numbers in free text is string parsing.
    for item_id, ground_truth, output, failure in _paired(answers, golden).iter_rows():
        grades = [
            Grade(None, failure)
            if failure is not None
            else verdicts.get(name, {}).get(item_id, Grade(None, "the judge did not score this item"))
            if isinstance(grader, RagasGrader)
            else grade(grader, output=output, ground_truth=ground_truth)
            for name, grader in zip(names, graders, strict=True)
        ]
        score, reason, scores = _combined(names, grades)
        rows.append((item_id, score, failure or reason, scores))
    return pl.DataFrame(rows, schema=GRADES, orient="row")


def check_contract(contract: Contract, output: str | None, *, answered: bool) -> ContractCheck:
    """Check the form of one answer, strictly: RFC 8259, every key once, nothing repaired.

    Without `bare`, the object may stand in one code fence, with or without prose around the fence.
    """
    if not contract.json_object:
        return ContractCheck(None, "no contract is declared")
    if not answered:
        return ContractCheck(None, NO_ANSWER)
    if not (text := (output or "").strip()):
        return ContractCheck(kept=False, reason=EMPTY_ANSWER)
    body, reason = _body(text, bare=contract.bare)
    found, reason = strict_object(body) if reason is None else (None, reason)
    if found is None:
        return ContractCheck(kept=False, reason=reason)
    if missing := missing_fields(found, contract.required):
        return ContractCheck(kept=False, reason=f"missing {', '.join(missing)}")
    return ContractCheck(kept=True, reason=None)


def check_contract_rows(contract: Contract, answers: pl.DataFrame) -> pl.DataFrame:
    """Check one arm's answers (columns item_id, status, output): item_id, kept, reason, in their order."""
    rows = [  # a loop over rows: JSON is parsed to the letter, which no engine does with repeated keys
        (item_id, *check_contract(contract, output, answered=status == "answered"))
        for item_id, status, output in answers.select("item_id", "status", "output").iter_rows()
    ]
    return pl.DataFrame(rows, schema=CONTRACT_CHECKS, orient="row")


def _body(text: str, *, bare: bool) -> tuple[str, str | None]:
    """Return the part of an answer that must be the JSON object, or the reason why no part can be."""
    if text.startswith("{"):
        return text, None
    if "{" not in text:
        return "", "no JSON object"
    if bare:
        return "", "a code fence or prose around the JSON object"
    blocks = fenced_blocks(text)
    if not blocks:
        return "", "prose around the JSON object and no code fence"
    if len(blocks) > 1:
        return "", f"{len(blocks)} code fences, one is needed"
    return blocks[0], None


def _comparison(grader: DeterministicGrader) -> Comparison:
    match grader:
        case JsonFieldGrader() | RegexGrader():
            return Comparison(grader.compare, grader.tolerance)
        case NumberGrader():
            return Comparison("number", grader.tolerance)
        case ExactGrader() | TextGrader():
            return Comparison(grader.kind, 0.0)
        case _:
            assert_never(grader)


def _gap(ground_truth: str | None, comparison: Comparison) -> str | None:
    """Say why nothing can be compared with the ground truth; None where something can."""
    if ground_truth is None or not ground_truth.strip():
        return "no ground truth"
    if comparison.how == "number" and only_number(ground_truth) is None:
        return "the ground truth is not one number"
    return None


def _found(grader: DeterministicGrader, output: str) -> tuple[object, str | None]:
    """Return what the grader looks at in an answer, or the reason why it is not there."""
    match grader:
        case JsonFieldGrader():
            return find_field(output, grader.field)
        case RegexGrader():
            return _captured(grader.pattern, output)
        case _:
            return output, None


def _captured(pattern: str, output: str) -> tuple[str, str | None]:
    """Return the pattern's first group, or the whole match where it has no group.

    Raises:
        TimeoutError: the pattern took longer than `PATTERN_SECONDS`.
    """
    match = regex.search(pattern, output, timeout=PATTERN_SECONDS)
    if match is None:
        return "", "the pattern does not match"
    captured = match[1] if match.re.groups else match[0]
    return ("", "the pattern's group captures nothing") if captured is None else (captured, None)


def _paired(answers: pl.DataFrame, golden: pl.DataFrame) -> pl.DataFrame:
    """Put each golden item beside its answer: item_id, ground_truth, output, and why there is no answer."""
    answered = pl.col("status") == "answered"
    failure = (
        pl.when(answered.fill_null(value=False))
        .then(None)
        .otherwise(
            pl.format("{}: {}", pl.lit(NO_ANSWER), pl.col("reason").fill_null(pl.col("status").fill_null("no row")))
        )
    )
    return (
        golden.select(pl.col("id").alias("item_id"), "ground_truth")
        .join(
            answers.select("item_id", "status", "reason", "output"),
            on="item_id",
            how="left",
            validate="1:1",
            maintain_order="left",
        )
        .select("item_id", "ground_truth", pl.col("output").fill_null(""), failure.alias("failure"))
    )


def _judged_grades(frame: pl.DataFrame) -> dict[str, Grade]:
    return {
        item_id: _sound(Grade(score, reason))
        for item_id, score, reason in frame.select("item_id", "score", "reason").iter_rows()
    }


def _sound(judged: Grade) -> Grade:
    """Let no NaN, no infinity and nothing outside [0, 1] through as a score."""
    if judged.score is None:
        return Grade(None, judged.reason or "the judge gave no score and no reason")
    if not (math.isfinite(judged.score) and 0 <= judged.score <= 1):
        return Grade(None, f"the judge gave {judged.score}, a score in [0, 1] is needed")
    return judged


def _combined(names: Sequence[str], grades: Sequence[Grade]) -> tuple[float | None, str | None, str]:
    """Combine one item's grades to its score, reason and JSON."""
    scores = [given.score for given in grades]
    measured = [score for score in scores if score is not None]
    score = math.fsum(measured) / len(scores) if scores and len(measured) == len(scores) else None
    reasons = [
        f"{name}: {given.reason}"
        for name, given in zip(names, grades, strict=True)
        if given.reason is not None and (score is not None or given.score is None)
    ]
    return score, "; ".join(reasons) or None, canonical_json(dict(zip(names, scores, strict=True)))
