"""The sealed holdout's life: what burns it, who may look again, and what the next draw leaves out."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anven_pipelines.domain.errors import BurntHoldout
from anven_pipelines.domain.events import GENESIS, Event, Head, follow
from anven_pipelines.domain.holdout import (
    ASKED,
    EXPORTED,
    OPENED,
    SHOWN,
    Attempt,
    Ledger,
    Seen,
    draw_key,
    holdout_stream,
    limits_digest,
    require_sealed,
    shown_stream,
)
from anven_pipelines.domain.sign_off import sign_off_stream
from tests.builders import a_migration

NOW = datetime(2026, 11, 21, tzinfo=UTC)
SEALED = {"first": frozenset("ab"), "second": frozenset("cd"), "overlapping": frozenset("bc")}
OPEN = {"first": frozenset("xy"), "second": frozenset("xz"), "overlapping": frozenset()}


class Measured(NamedTuple):
    golden: str
    answers: str


@dataclass
class Book:
    """A ledger that is written as assets write it."""

    events: list[Event] = field(default_factory=list)
    verdicts: list[Event] = field(default_factory=list)
    shown: list[Event] = field(default_factory=list)
    head: Head = GENESIS

    def _append(self, to: list[Event], stream: str, kind: str, payload: dict[str, Any]) -> Event:
        event = follow(self.head, stream=stream, kind=kind, key=f"{self.head.seq}", payload=payload, now=NOW)
        self.head = Head(event.seq, event.hash)
        to.append(event)
        return event

    def open(
        self, golden: str = "first", answers: str = "m1", *, draw: str = "d1", workload: str = "w", **payload: Any
    ) -> Event:
        looked_at = {"run": "run-00001", "golden_dataset": golden, "scores": answers, "limits": "l", "draw": draw}
        return self._append(self.events, holdout_stream(workload), OPENED, looked_at | payload)

    def conclude(self, opening: Event, verdict: str, **statuses: str) -> None:
        payload = opening.payload | {"verdict": verdict, "statuses": statuses}
        self._append(self.verdicts, sign_off_stream("w"), "refused", payload)

    def export(self, golden: str = "first") -> Event:
        return self._append(self.events, holdout_stream("w"), EXPORTED, {"golden_dataset": golden, "to": "file"})

    def ask(self, night: str) -> Event:
        return self._append(self.events, holdout_stream("w"), ASKED, {"golden_dataset": "first", "night": night})

    def show(self, golden: str, draw: str | None) -> Event:
        return self._append(self.shown, shown_stream("w"), SHOWN, {"golden_dataset": golden, "draw": draw})

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.events, self.verdicts, self.shown, SEALED.__getitem__, OPEN.__getitem__)


def test_a_first_look_is_admitted_and_nothing_was_burnt_before_it() -> None:
    book = Book()
    assert book.ledger.require_admitted(book.open()) == Seen()
    assert book.ledger.seen_before("d1").burnt == frozenset()


@pytest.mark.parametrize("verdict", ["NO-GO", "INCONCLUSIVE"])
def test_a_failed_look_burns_what_it_saw_for_every_other_draw(verdict: str) -> None:
    book = Book()
    book.conclude(book.open(), verdict)
    assert book.ledger.seen_before("d2").burnt == {"a", "b"}
    assert book.ledger.seen_before("d1").burnt == frozenset(), "the same declaration draws the same dataset again"
    assert [str(look) for look in book.ledger.looks()] == [f"run run-0000 of w on 2026-11-21 ({verdict})"]


def test_go_burns_nothing_and_other_answers_may_be_judged() -> None:
    book = Book()
    book.conclude(book.open(), "GO")
    assert book.ledger.require_admitted(book.open(answers="m2")) == Seen()
    assert book.ledger.seen_before("d2").burnt == {"a", "b"}, "the second look has no verdict yet"


def test_the_same_measurement_may_be_repeated_after_it_failed() -> None:
    book = Book()
    book.conclude(book.open(), "NO-GO")
    assert book.ledger.require_admitted(book.open(run="run-00002")) == Seen()


@pytest.mark.parametrize(
    "change",
    [
        {"scores": "m2"},
        {"adapted_prompt": "p2"},
        {"target_answers": "t2"},
        {"grading": "g2"},
        {"limits": "l2"},
        {"golden_dataset": "overlapping"},
    ],
)
def test_anything_else_on_burnt_items_is_refused_with_what_to_do(change: dict[str, str]) -> None:
    book = Book()
    book.conclude(book.open(), "NO-GO")
    with pytest.raises(BurntHoldout, match=r"opened by run run-0000 of w on 2026-11-21 \(NO-GO\).*golden.seed.*waive"):
        book.ledger.require_admitted(book.open(**change))


def test_items_that_nobody_has_looked_at_may_judge() -> None:
    book = Book()
    book.conclude(book.open(), "NO-GO")
    assert book.ledger.require_admitted(book.open("second", "m2", draw="d2")) == Seen()


def test_a_run_that_was_killed_between_opening_and_verdict_has_opened_it() -> None:
    book = Book()
    book.open()
    assert book.ledger.seen_before("d2").burnt == {"a", "b"}
    with pytest.raises(BurntHoldout, match="no verdict"):
        book.ledger.require_admitted(book.open(answers="m2"))
    again = book.open(run="run-00002")
    assert book.ledger.require_admitted(again) == Seen()
    book.conclude(again, "GO")
    assert book.ledger.seen_before("d3").burnt == frozenset(), "what was finished with GO is not burnt"


def test_of_two_runs_at_once_the_first_in_the_ledger_looks() -> None:
    book = Book()
    first, second = book.open(), book.open(answers="m2")
    assert book.ledger.require_admitted(first) == Seen()
    with pytest.raises(BurntHoldout):
        book.ledger.require_admitted(second)
    book.conclude(first, "GO")
    with pytest.raises(BurntHoldout):
        book.ledger.require_admitted(second)
    assert len(book.ledger.looks()) == 1, "a refused look has seen nothing"


def test_a_waived_holdout_is_admitted_and_its_burnt_clusters_are_told() -> None:
    book = Book()
    book.conclude(book.open(), "NO-GO")
    waived = book.open("overlapping", "m2", draw="d2", waived=["holdout"])
    assert book.ledger.require_admitted(waived) == Seen(burnt=frozenset("b"))
    book.conclude(waived, "GO")
    again = book.open("overlapping", "m2", draw="d2", waived=["holdout"])
    assert book.ledger.require_admitted(again) == Seen(burnt=frozenset("b")), "the verdict must reproduce"


def test_what_nobody_measured_may_be_waived_late_and_what_failed_may_not() -> None:
    book = Book()
    book.conclude(book.open(), "INCONCLUSIVE", safety="unmeasured", ttft="not met")
    assert book.ledger.require_admitted(book.open(waived=["safety"])) == Seen()
    with pytest.raises(BurntHoldout, match="waive names ttft"):
        book.ledger.require_admitted(book.open(waived=["safety", "ttft"]))


def test_what_a_later_look_has_measured_may_not_be_waived_any_more() -> None:
    book = Book()
    book.conclude(book.open(), "INCONCLUSIVE", cost="unmeasured")
    book.conclude(book.open(run="run-00002"), "NO-GO", cost="not met")
    with pytest.raises(BurntHoldout, match="waive names cost"):
        book.ledger.require_admitted(book.open(run="run-00003", waived=["cost"]))


def test_an_export_of_sealed_items_burns_them_for_new_verdicts_and_not_for_those_that_stand() -> None:
    book = Book()
    book.conclude(book.open(), "GO")
    book.export()
    assert book.ledger.require_admitted(book.open()) == Seen()
    with pytest.raises(BurntHoldout, match="an export"):
        book.ledger.require_admitted(book.open(answers="m2"))
    assert book.ledger.seen_before("d2").burnt == {"a", "b"}


def test_a_nightly_regression_burns_for_new_verdicts_and_not_for_the_one_that_stands() -> None:
    book = Book()
    book.conclude(book.open(), "GO")
    nights = [book.ask("2026-11-21"), book.ask("2026-11-22")]
    assert book.ledger.require_admitted(book.open()) == Seen()
    with pytest.raises(BurntHoldout, match="a nightly regression of w on 2026-11-21"):
        book.ledger.require_admitted(book.open(answers="m2"))
    assert book.ledger.seen_before("d2").burnt == {"a", "b"}
    assert book.ledger.seen_before("d1") == Seen(), "the verdict must reproduce"
    seqs = [look.seq for look in book.ledger.looks()]
    assert nights[0].seq in seqs
    assert nights[1].seq not in seqs, "a later night burns nothing more"


def test_a_draw_exported_before_its_first_sign_off_is_drawn_anew() -> None:
    book = Book()
    book.export()
    assert book.ledger.seen_before("d1").burnt == {"a", "b"}


@given(
    st.lists(
        st.tuples(
            st.sampled_from(sorted(SEALED)),
            st.sampled_from("xyz"),
            st.sampled_from(["GO", "NO-GO", "INCONCLUSIVE", None]),
        ),
        max_size=12,
    )
)
def test_no_admitted_first_look_ever_rests_on_burnt_items(steps: list[tuple[str, str, str | None]]) -> None:
    """Replays any history: a new measurement that gets through shares no cluster with an earlier failed look."""
    book, refused, pending, seen = Book(), set[Measured](), set[Measured](), set[Measured]()
    for golden, answers, verdict in steps:
        measured = Measured(golden, answers)
        failed = frozenset[str]().union(*(SEALED[each.golden] for each in refused | pending))
        opening = book.open(golden, answers)
        if measured not in seen and SEALED[golden] & failed:
            with pytest.raises(BurntHoldout):
                book.ledger.require_admitted(opening)
            continue
        book.ledger.require_admitted(opening)
        seen.add(measured)
        pending.add(measured)
        if verdict is not None:
            book.conclude(opening, verdict)
            pending.discard(measured)
            refused |= {measured} if verdict != "GO" else set()


def test_a_draw_is_named_by_what_decides_the_attempt_and_by_nothing_else() -> None:
    inputs, plain = {"request_log": "r"}, a_migration()
    same = [
        a_migration(owner="other"),
        a_migration(sign_off={"quality_margin": 0.03, "waive": ["holdout"]}),
        a_migration(legacy={"model": "legacy-model", "logs": "elsewhere.jsonl"}),
        a_migration(cost={"one_off_usd": 5}),
    ]
    other = [
        a_migration(golden={"size": "all", "holdout": 1.0, "seed": 7}),
        a_migration(sign_off={"quality_margin": 0.05, "waive": ["ttft", "cost", "safety"]}),
        a_migration(grading=[{"kind": "exact"}]),
        a_migration(target={"model": "m2", "engine": "recorded", "answers": "answers.jsonl"}),
        a_migration(prompt={"rewrites": [{"user": ".*", "messages": [{"role": "user", "content": "x"}]}]}),
    ]
    assert {draw_key(each, inputs) for each in same} == {draw_key(plain, inputs)}
    assert len({draw_key(each, inputs) for each in [plain, *other]} | {draw_key(plain, {"request_log": "s"})}) == 7


def test_a_waiver_is_no_limit_and_a_margin_is() -> None:
    plain = a_migration(sign_off={"quality_margin": 0.03})
    assert limits_digest(plain) == limits_digest(a_migration(sign_off={"quality_margin": 0.03, "waive": ["ttft"]}))
    assert limits_digest(plain) != limits_digest(a_migration(sign_off={"quality_margin": 0.04}))


def test_a_draw_with_nothing_left_to_seal_says_what_to_do() -> None:
    rows = pl.DataFrame({"split": ["open", "open"]})
    with pytest.raises(BurntHoldout, match=r"none of 2 items can be sealed: .* stood open in an earlier .* add logs"):
        require_sealed(rows, a_migration())
    require_sealed(rows.with_columns(split=pl.lit("sealed")), a_migration())


def test_what_stood_open_in_a_shown_version_is_not_sealed_by_another_draw() -> None:
    book = Book()
    book.show("first", "d1")
    assert book.ledger.seen_before("d2") == Seen(shown=frozenset("xy"))
    assert book.ledger.seen_before("d1") == Seen(), "the same declaration draws the same version again"


def test_what_was_shown_after_a_draw_was_opened_does_not_change_it() -> None:
    book = Book()
    book.show("first", "d1")
    book.open(draw="d1")
    book.show("second", "d2")
    assert book.ledger.seen_before("d1") == Seen()


def test_a_draw_whose_sealed_items_were_seen_elsewhere_is_drawn_anew_and_keeps_open_what_stood_open() -> None:
    book = Book()
    book.show("first", "d1")
    book.export("first")
    assert book.ledger.seen_before("d1") == Seen(burnt=frozenset("ab"), shown=frozenset("xy"))


def test_sealed_items_that_stood_open_before_are_admitted_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPEN, "second", frozenset("bz"))
    book = Book()
    book.show("second", "d2")
    book.show("first", "d1")
    looked = book.open()
    assert book.ledger.require_admitted(looked) == Seen(shown=frozenset("b"))
    book.conclude(looked, "INCONCLUSIVE")
    assert book.ledger.require_admitted(book.open()) == Seen(shown=frozenset("b")), "the verdict must reproduce"


def test_what_another_workload_burnt_is_burnt() -> None:
    book = Book()
    book.conclude(book.open(workload="other"), "NO-GO")
    with pytest.raises(BurntHoldout, match="of other on"):
        book.ledger.require_admitted(book.open(answers="m2"))
    assert book.ledger.seen_before("d2").burnt == {"a", "b"}


def test_an_attempt_on_items_that_another_has_judged_is_known() -> None:
    """A GO burns nothing, so that another prompt can be judged on the items of the last one.

    An attempt on fresh items after those two tells of them too: its error rate is that of all attempts.
    """
    book = Book()
    book.open(workload="other")
    first = book.open()
    book.conclude(first, "GO")
    again = book.open(run="run-00002")
    book.conclude(again, "GO")
    edited = book.open(answers="m2", draw="d2")
    fresh = book.open("second", "m3", draw="d3")
    assert [book.ledger.attempt(each) for each in (first, again, edited, fresh)] == [
        Attempt(1, items_overlap=False),
        Attempt(1, items_overlap=False),
        Attempt(2, items_overlap=True),
        Attempt(3, items_overlap=True),
    ]


def test_attempts_each_on_items_of_its_own_are_known_as_such() -> None:
    book = Book()
    looks = [book.open(), book.open("second", "m2", draw="d2")]
    assert [book.ledger.attempt(each).items_overlap for each in looks] == [False, False]


def test_an_attempt_is_a_measurement_and_a_repetition_keeps_its_number() -> None:
    book = Book()
    looks = [
        book.open(),
        book.open(workload="other"),
        book.open("second", "m2", draw="d2"),
        book.open("second", "m2", draw="d2"),
        book.open(run="run-00002"),
    ]
    book.export()
    assert [book.ledger.attempt(each).number for each in looks] == [1, 1, 2, 2, 1]
