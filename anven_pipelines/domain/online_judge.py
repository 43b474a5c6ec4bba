"""Which answers of production an online judge scores, and what it is given of them: question and answer, no arm.

Of each unit that is due for a score one answer is judged: units are the observations, and what more answers of one told
would cost as much again. Which one is drawn by a hash of its request; which units are is the gateway's keyed hash.
Neither knows the arm, nor does the judge.
"""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Final, NamedTuple

import polars as pl

from anven_pipelines.domain.rollout_plan import judge_outcome
from anven_pipelines.domain.rollout_units import ORDER, drawn

if TYPE_CHECKING:
    from datetime import datetime

    from anven_pipelines.domain.rollout_plan import RolloutPlan
    from anven_pipelines.spec_grading import OnlineJudge

MOST_ASKED: Final = 32_000
"""Characters of a conversation that a judge is given at most, the newest ones."""

HANDED_OVER: Final = timedelta(seconds=5)
"""Longest time between an event and the hand-over of its text, which the worker does next."""

_OF_PROCESS: Final = r"-\d+$"
"""What the process that redacts adds to the name of its gateway's worker."""


class Due(NamedTuple):
    """What an online judge has to do.

    Attributes:
        waiting: `event_id`, `request_id` and `due_at` of the answers that may be judged now and have no score of this
            judge yet, the earliest due first.
        needed: Requests whose texts are still needed: those that wait, and those of units that have not settled.
        known: Requests of which an event is there; of others nobody can say yet what their texts are for.
        events: `event_id`, `request_id`, `worker` and `ts` of all events of requests.
    """

    waiting: pl.DataFrame
    needed: pl.Series
    known: pl.Series
    events: pl.DataFrame


class Asked(NamedTuple):
    """What a judge is given of one answer; None is what cannot be read."""

    request_id: str
    question: str | None
    answer: str | None


def due_of(events: pl.DataFrame, plan: RolloutPlan, judge: OnlineJudge, *, now: datetime) -> Due:
    """Return which answers a judge has to score, of all generations of an attempt.

    An answer can be judged once its unit has settled, as another of the unit's may be drawn until then, and until its
    score is due, as one that comes later counts for nothing. Those of the generation before are judged, too: legacy's
    are what the target is held against once it has all traffic.

    Args:
        events: GATEWAY_EVENTS of the attempt, each once.
        plan: Says which units are due for a score, and when.
        judge: Whose scores are looked for.
        now: When it is looked.
    """
    rollout = plan.rollout
    requests = events.filter(pl.col("kind") == "request").sort(ORDER)
    named = requests.filter(pl.col("request_id").is_not_null()).unique("request_id", keep="first", maintain_order=True)
    first = pl.col("ts").min().over("generation", "unit")
    dated = requests.filter(pl.col("unit").is_not_null(), pl.col("intended").is_not_null()).with_columns(
        (first + rollout.settle).alias("settled_at"), (first + rollout.settle + rollout.label_delay).alias("due_at")
    )
    mine = (pl.col("outcome") == judge_outcome(judge)) & pl.col("score").is_not_null()
    scores = events.filter(pl.col("kind") == "feedback", mine).group_by("request_id").agg(scored_at=pl.col("ts").min())
    answers = (
        dated.filter(drawn(rollout.judged), pl.col("ts") <= pl.col("settled_at"), pl.col("status") == "ok")
        # A name that a client gave twice is that of the first request, as where scores are counted.
        .join(named, on="event_id", how="semi")
        .join(scores, on="request_id", how="left", maintain_order="left")
        # What was told without a score, or too late, is none where scores are counted either.
        .with_columns((pl.col("scored_at") <= pl.col("due_at")).fill_null(value=False).alias("scored"))
        .filter(pl.col("due_at") > now, ~pl.col("scored").any().over("generation", "unit"))
    )
    settled = answers.filter(pl.col("settled_at") <= now)
    chosen = settled.sort(pl.col("request_id").hash(seed=0)).unique(["generation", "unit"], keep="first")
    waiting = chosen.select("event_id", "request_id", "due_at").sort("due_at", "request_id")
    unsettled = answers.filter(pl.col("settled_at") > now)["request_id"]
    written = requests.select("event_id", "request_id", "worker", "ts")
    return Due(waiting, pl.concat([waiting["request_id"], unsettled]), named["request_id"], written)


def with_texts(due: Due, texts: pl.DataFrame) -> pl.DataFrame:
    """Return `due.waiting` with `messages` and `answer` of each answer; both are NULL where its text is not there.

    A client may name several requests alike, and the text of the one that is judged may be the one that is lost. A
    worker hands a text over right behind the event, so a text is that of the last event of its name before it.

    Args:
        due: What is to be judged.
        texts: GATEWAY_TEXTS of requests, in any order.
    """
    handed = texts.select(
        "request_id", pl.col("worker").str.replace(_OF_PROCESS, ""), "ts", "seq", "messages", "answer"
    ).sort("ts", "seq")
    events = due.events.sort("ts")
    placed = handed.join_asof(
        events, on="ts", by=["request_id", "worker"], tolerance=HANDED_OVER, check_sortedness=False
    )
    own = placed.select("event_id", "messages", "answer").unique("event_id", keep="first", maintain_order=True)
    return due.waiting.join(own, on="event_id", how="left", maintain_order="left")


def asked_of(request_id: str, messages: str | None, answer: str | None) -> Asked:
    """Return what a judge is given of a stored text: the conversation and the answer to it.

    Args:
        request_id: Of the text.
        messages: `messages` of GATEWAY_TEXTS.
        answer: `answer` of GATEWAY_TEXTS.
    """
    read = _json(messages)
    asked = [message for message in read if isinstance(message, dict)] if isinstance(read, list) else []
    told = [(str(message.get("role", "user")), _said(message)) for message in asked]
    question = told[0][1] if len(told) == 1 else "\n\n".join(f"{role}: {said}" for role, said in told if said)
    found = _json(answer)
    return Asked(request_id, question[-MOST_ASKED:] or None, _said(found) if isinstance(found, dict) else None)


def _said(message: dict[str, object]) -> str:
    """Return a message's words, and its tool calls in words."""
    calls = message.get("tool_calls")
    called = [
        f"(calls {call.get('name')} with {call.get('arguments')})"
        for call in (calls if isinstance(calls, list) else [])
        if isinstance(call, dict)
    ]
    content = message.get("content")
    return "\n".join([*([content] if isinstance(content, str) and content else []), *called])


def _json(text: str | None) -> object:
    """Read JSON; what is none is nothing that could be judged."""
    try:
        return json.loads(text) if text else None
    except (ValueError, RecursionError):
        return None
