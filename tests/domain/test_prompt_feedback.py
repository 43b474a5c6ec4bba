"""What a model that rewrites a prompt is told."""

from __future__ import annotations

from typing import Any

import pytest

from anven_pipelines.domain.prompt_feedback import (
    LONGEST_EXAMPLE,
    feedback_on,
    proposed_text,
    records_of,
    rules_for,
)
from anven_pipelines.domain.prompt_strategy import Shown
from anven_pipelines.domain.prompt_template import PromptTemplate


def shown(item: int, reason: str | None = None, **changes: Any) -> Shown:
    fields = {"slots": {"text": f"input {item}"}, "ground_truth": "42", "output": f"answer {item}"}
    return Shown(item=item, score=0.0 if reason else 1.0, reason=reason, **{**fields, **changes})


def test_failures_are_counted_by_kind_the_most_frequent_first() -> None:
    answers = [
        shown(0, "no number in the answer"),
        shown(1),
        shown(2, "found 12, needed 13"),
        shown(3, "found -4.5, needed 1,000"),
        shown(4, "found 'blue', needed 13"),
    ]
    feedback = feedback_on(answers, strata={}, examples=1)
    assert [(cluster.reason, cluster.items) for cluster in feedback.clusters] == [
        ("found 12, needed 13", (2, 3, 4)),
        ("no number in the answer", (0,)),
    ]
    assert [len(cluster.examples) for cluster in feedback.clusters] == [1, 1]
    assert (feedback.asked, feedback.right, feedback.right_examples) == (5, 1, (answers[1],))


def test_the_same_failure_in_two_strata_is_two_clusters() -> None:
    answers = [shown(item, "no number in the answer") for item in range(3)]
    feedback = feedback_on(answers, strata={0: "German", 2: "German"}, examples=9)
    assert [(cluster.stratum, cluster.items) for cluster in feedback.clusters] == [("German", (0, 2)), ("", (1,))]


def test_a_failure_without_a_reason_says_so() -> None:
    feedback = feedback_on([shown(0)._replace(score=0.5)], strata={}, examples=1)
    assert feedback.clusters[0].reason == "the graders gave no reason"


def test_records_hold_what_went_wrong_what_was_right_and_what_was_refused() -> None:
    answers = [shown(0, "no number in the answer", output=None), shown(1, ground_truth=None)]
    records = records_of(feedback_on(answers, strata={0: "German"}, examples=1), refused=["it lacks {text}"])
    assert records == [
        {
            "What went wrong": "no number in the answer",
            "How often": "1 of 2 answers",
            "Where": "German",
            "Examples": [
                {
                    "Inputs": {"text": "input 0"},
                    "Answer": "no answer",
                    "Right answer": "42",
                    "Feedback": "no number in the answer",
                }
            ],
        },
        {
            "What was right, and must stay right": "1 of 2 answers",
            "Examples": [{"Inputs": {"text": "input 1"}, "Answer": "answer 1"}],
        },
        {"Earlier proposals that were refused without being tried": ["it lacks {text}"]},
    ]


def test_a_long_text_is_cut() -> None:
    (record,) = records_of(feedback_on([shown(0, output="#" * 3000)], strata={}, examples=1))
    assert str(record).count("#") == LONGEST_EXAMPLE
    assert "1000 more" in str(record)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("Sure:\n```\nBe brief.\nName it.\n```\nDone.", "Be brief.\nName it."),
        ("```text\nBe brief.\n```", "Be brief."),
        ("```Be brief.```", "Be brief."),
        ("```\nUse this:\n```json\n{}\n```\nonly.\n```", "Use this:\n```json\n{}\n```\nonly."),
        ("```\nBe brief: now.\n```", "Be brief: now."),
        ("Be brief.", None),
        ("```\nBe brief.", None),
        ("```\n\n```", None),
        ("", None),
    ],
)
def test_a_proposal_is_what_stands_between_the_fences(answer: str, text: str | None) -> None:
    assert proposed_text(answer) == text


def test_rules_name_what_must_stay() -> None:
    template = PromptTemplate(
        name="triage",
        user="Ticket: {ticket}",
        slots=("ticket",),
        policies=("Never ask for a password.",),
        tools=({"type": "function", "function": {"name": "look_up"}}, {"name": "close"}),
        contract={"type": "object"},
    )
    user, system = "\n".join(rules_for(template, slots=["ticket"])), "\n".join(rules_for(template, slots=[]))
    assert "{ticket}" in user
    assert "{ticket}" not in system
    assert "no placeholders" in system
    for words in ("Never ask for a password.", "close, look_up", "JSON"):
        assert words in user
        assert words in system
    assert rules_for(PromptTemplate(name="plain", user="hi", slots=()), slots=[]) == [
        "State general rules; do not copy the right answers of the examples into the text."
    ]
