"""What a model that rewrites a prompt is told: what went wrong, how often, with examples, and what was right.

Reasons of graders name the case ("found 12, needed 13"). What differs only in numbers and quoted words is one kind of
failure, so a reader sees how often a kind occurred instead of a list of single cases.
"""

from __future__ import annotations

import re
from collections import defaultdict
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anven_pipelines.domain.prompt_strategy import Shown
    from anven_pipelines.domain.prompt_template import PromptTemplate

PERFECT: Final = 1.0
LONGEST_EXAMPLE: Final = 2000  # characters of one text that is shown; a long document would crowd out the rest

_PARTICULARS: Final = re.compile(r"'[^']*'|\"[^\"]*\"|`[^`]*`|-?\d+(?:[.,]\d+)*")
_NO_REASON: Final = "the graders gave no reason"
_NO_ANSWER: Final = "no answer"
_FENCE: Final = "```"


class FailureCluster(NamedTuple):
    """Answers of one stratum that were marked down for the same kind of reason.

    Attributes:
        reason: The reason of the first of them, as the grader wrote it.
        stratum: Stratum of their items; empty where there are none.
        items: Numbers of the items, in the order in which they were shown.
        examples: Some of them.
    """

    reason: str
    stratum: str
    items: tuple[int, ...]
    examples: tuple[Shown, ...]


class Feedback(NamedTuple):
    """What became of a candidate's answers.

    Attributes:
        asked: Number of answers.
        clusters: Failures, the most frequent first.
        right: Number of answers with a full score.
        right_examples: Some of them.
    """

    asked: int
    clusters: tuple[FailureCluster, ...]
    right: int
    right_examples: tuple[Shown, ...]


def feedback_on(shown: Sequence[Shown], *, strata: Mapping[int, str], examples: int) -> Feedback:
    """Cluster failures by kind of reason and by stratum.

    Args:
        shown: Answers with their grades.
        strata: Item to stratum; an item that is missing has none.
        examples: At most so many answers are carried for each cluster, and of what was right.
    """
    by_kind: dict[tuple[str, str], list[Shown]] = defaultdict(list)
    right = []
    for each in shown:
        if each.score >= PERFECT:
            right.append(each)
        else:
            by_kind[kind_of_reason(each.reason or _NO_REASON), strata.get(each.item, "")].append(each)
    clusters = [
        FailureCluster(
            reason=failed[0].reason or _NO_REASON,
            stratum=stratum,
            items=tuple(each.item for each in failed),
            examples=tuple(failed[:examples]),
        )
        for (_, stratum), failed in by_kind.items()
    ]
    ordered = sorted(clusters, key=lambda cluster: -len(cluster.items))  # stable: equal ones as they came
    return Feedback(len(shown), tuple(ordered), len(right), tuple(right[:examples]))


def kind_of_reason(reason: str) -> str:
    """Return a reason without its numbers and quoted words."""
    return _PARTICULARS.sub("…", reason)


def records_of(feedback: Feedback, *, refused: Sequence[str] = ()) -> list[dict[str, object]]:
    """Write feedback as records of a reflective dataset: names to texts, lists and further names.

    Args:
        feedback: What became of the answers.
        refused: What earlier proposals broke, each in words.
    """
    records: list[dict[str, object]] = [
        {
            "What went wrong": cluster.reason,
            "How often": f"{len(cluster.items)} of {feedback.asked} answers",
            **({"Where": cluster.stratum} if cluster.stratum else {}),
            "Examples": [_example(each) for each in cluster.examples],
        }
        for cluster in feedback.clusters
    ]
    if feedback.right:
        records.append(
            {
                "What was right, and must stay right": f"{feedback.right} of {feedback.asked} answers",
                "Examples": [_example(each) for each in feedback.right_examples],
            }
        )
    if refused:
        records.append({"Earlier proposals that were refused without being tried": list(refused)})
    return records


def rules_for(template: PromptTemplate, *, slots: Sequence[str]) -> list[str]:
    """Say what a proposal must keep.

    Args:
        template: What is rewritten.
        slots: Those that the text which is rewritten holds; the others stand in another message.
    """
    rules = []
    if slots:
        names = ", ".join(f"{{{name}}}" for name in slots)
        rules.append(f"Each of these placeholders stands in the new text exactly once, braces included: {names}.")
    elif template.slots:
        rules.append("The new text holds no placeholders: the inputs are filled into another message.")
    if template.policies:
        sentences = "\n".join(f"  {sentence}" for sentence in template.policies)
        rules.append(f"Keep these sentences word for word where the present text has them:\n{sentences}")
    if template.tools:
        names = ", ".join(sorted(str(_tool_name(tool)) for tool in template.tools))
        rules.append(f"The assistant is offered these tools; name no others and do not rename them: {names}.")
    if template.contract is not None:
        rules.append("Answers must stay JSON with the same fields; do not ask for another form.")
    rules.append("State general rules; do not copy the right answers of the examples into the text.")
    return rules


def proposed_text(answer: str) -> str | None:
    """Return the text between the first and the last fence of an answer; None where nothing is fenced.

    An answer without fences is talk about a prompt, or a refusal: asking the target with it would waste calls.
    """
    start, end = answer.find(_FENCE), answer.rfind(_FENCE)
    if start < 0 or end < start + len(_FENCE):
        return None
    inside = answer[start + len(_FENCE) : end]
    first, newline, rest = inside.partition("\n")
    is_language = bool(newline) and re.fullmatch(r"\w*", first.strip()) is not None
    return (rest if is_language else inside).strip() or None


def _example(shown: Shown) -> dict[str, object]:
    answer = shown.output if shown.output is not None else _NO_ANSWER
    return {
        "Inputs": {name: _cut(value) for name, value in shown.slots.items()},
        "Answer": _cut(answer),
        **({"Right answer": _cut(shown.ground_truth)} if shown.ground_truth is not None else {}),
        **({"Feedback": _cut(shown.reason or _NO_REASON)} if shown.score < PERFECT else {}),
    }


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_EXAMPLE else f"{text[:LONGEST_EXAMPLE]} […{len(text) - LONGEST_EXAMPLE} more]"


def _tool_name(tool: Mapping[str, object]) -> object:
    function = tool.get("function")
    return function.get("name") if isinstance(function, dict) else tool.get("name")
