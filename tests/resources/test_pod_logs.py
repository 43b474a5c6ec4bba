"""Each line of a pod's output is passed on once, however often and from wherever it is read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anven_pipelines.resources.kubernetes_api import LogLine
from anven_pipelines.resources.pod_logs import read_before


def lines(*stamps: int) -> list[LogLine]:
    return [LogLine(f"2026-10-05T08:00:{at:02d}.000000000Z", f"line {at}") for at in stamps]


@pytest.mark.parametrize(
    ("before", "now", "known"),
    [
        ((1, 2), (1, 2), 2),
        ((1, 2), (1, 2, 3), 2),
        ((1, 2), (2, 3), 1),
        ((1, 2), (40, 41), 0),
        ((1, 2, 2), (2, 2, 2), 2),
        ((1, 2), (), 0),
    ],
    ids=["nothing new", "one more", "a later window", "after a silence", "the same instant", "an empty window"],
)
def test_what_was_read_before_is_no_news(before: tuple[int, ...], now: tuple[int, ...], known: int) -> None:
    assert read_before(lines(*before), lines(*now)) == known


@given(st.lists(st.integers(0, 59), min_size=1).map(sorted), st.data())
def test_readings_of_any_windows_give_every_line_once(stamps: list[int], data: st.DataObject) -> None:
    read: list[LogLine] = []
    last: list[LogLine] = []
    known = 0
    while known < len(stamps):
        upto = data.draw(st.integers(known + 1, len(stamps)))
        start = data.draw(st.integers(0, known))
        while start and stamps[start - 1] == stamps[start]:  # a window opens at a time, and holds all of its lines
            start -= 1
        window = lines(*stamps[start:upto])
        read += window[read_before(last, window) if last else 0 :]
        last, known = window, upto
    assert read == lines(*stamps)
