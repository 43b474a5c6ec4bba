"""When a batch is given up, and when it is not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anven_pipelines.domain.completion import Answer, Failure
from anven_pipelines.domain.errors import AnvenError, InvalidInput, UnavailableService
from anven_pipelines.domain.outage import HOPELESS, Outage

if TYPE_CHECKING:
    from anven_pipelines.domain.completion import Kind

ANSWER = Answer("fine", None, "stop", "m", 2, 1, None, 1.0, 2.0)
KINDS: tuple[Kind, ...] = (
    "refused", "bad_request", "busy", "server_error", "timeout", "unreachable", "broken_answer",
)  # fmt: skip


def failures_until_given_up(
    *kinds: Kind, pending: int = 1000, has_answered: bool = False, is_new: bool = True, concurrency: int = 1
) -> tuple[int, AnvenError] | None:
    """Let items fail, of these kinds in turn, and count how many it takes."""
    outage = Outage("the endpoint", pending, concurrency, has_answered)
    for count in range(1, min(pending, 200) + 1):
        outage.blame(Failure(kinds[count % len(kinds)], "words of the server"), is_new=is_new)
        if error := outage.error(kept=7):
            return count, error
    return None


@pytest.mark.parametrize(
    ("kinds", "error", "count"),
    [
        (("refused",), InvalidInput, 3),
        (("bad_request",), InvalidInput, 20),
        (("unreachable",), UnavailableService, 3),
        (("busy",), UnavailableService, 20),
        (("server_error",), UnavailableService, 20),
        (("timeout",), UnavailableService, 20),
        (("broken_answer",), UnavailableService, 20),
        (("busy", "server_error", "timeout"), UnavailableService, 20),
    ],
)
def test_failures_in_a_row_end_the_batch(kinds: tuple[Kind, ...], error: type[AnvenError], count: int) -> None:
    given_up = failures_until_given_up(*kinds)
    assert given_up is not None
    assert given_up[0] == count
    assert type(given_up[1]) is error
    assert "the endpoint" in str(given_up[1])
    assert "words of the server" in str(given_up[1])


@pytest.mark.parametrize("kind", ["refused", "unreachable", "bad_request"])
def test_a_batch_of_one_can_be_given_up(kind: Kind) -> None:
    given_up = failures_until_given_up(kind, pending=1)
    assert given_up is not None
    assert "last 1 requests" not in str(given_up[1])


@pytest.mark.parametrize("kind", ["busy", "server_error", "timeout", "broken_answer"])
def test_what_may_pass_does_not_end_a_small_batch(kind: Kind) -> None:
    assert failures_until_given_up(kind, pending=HOPELESS - 1) is None


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("bad_request", {"has_answered": True}),
        ("refused", {"is_new": False}),
        ("busy", {"is_new": False}),
        ("timeout", {"is_new": False}),
        ("refused", {"has_answered": True, "pending": 2}),
    ],
)
def test_failures_of_their_own_items_never_end_the_batch(kind: Kind, change: dict[str, Any]) -> None:
    assert failures_until_given_up(kind, **change) is None


def test_many_requests_in_flight_may_fail_together() -> None:
    given_up = failures_until_given_up("timeout", concurrency=64)
    assert given_up is not None
    assert given_up[0] == 128


@given(st.lists(st.sampled_from(KINDS), max_size=60))
def test_one_answer_wipes_the_slate(kinds: list[Kind]) -> None:
    outage = Outage("the endpoint", 1000, 1, has_answered=False)
    for kind in kinds:
        outage.blame(Failure(kind, "x"), is_new=True)
    assert outage.blame(ANSWER, is_new=True) == "item"
    assert outage.error(kept=0) is None


@pytest.mark.parametrize(
    ("kind", "has_answered", "blame"),
    [
        ("refused", True, "endpoint"),
        ("unreachable", True, "endpoint"),
        ("bad_request", False, "endpoint"),
        ("bad_request", True, "item"),
        ("busy", False, "either"),
        ("timeout", True, "either"),
    ],
)
def test_a_failure_is_blamed_on_who_can_mend_it(kind: Kind, has_answered: bool, blame: str) -> None:
    assert Outage("the endpoint", 9, 1, has_answered).blame(Failure(kind, "x"), is_new=True) == blame
