"""Following the traffic file."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from anven_pipelines.domain.traffic import Route, Traffic
from anven_pipelines.domain.traffic_file import print_traffic
from anven_pipelines.gateway.traffic_source import TrafficSource

if TYPE_CHECKING:
    from pathlib import Path

ROUTE = Route("support", attempt=1, generation=1, stage=0, share=0.25)


def text(route: Route) -> str:
    return print_traffic(Traffic({route.workload: route}))


def test_a_change_is_seen_though_size_and_time_of_the_file_stay(tmp_path: Path) -> None:
    path = tmp_path / "traffic.json"
    path.write_text(text(ROUTE))
    source = TrafficSource(path)
    before = path.stat()
    path.write_text(text(replace(ROUTE, generation=2, share=0.75)))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert source.refresh()
    assert source.traffic.of("support").share == 0.75
    assert not source.refresh()


def test_every_beginning_of_a_file_keeps_the_routes_that_were_in_force(tmp_path: Path) -> None:
    path = tmp_path / "traffic.json"
    path.write_text(text(ROUTE))
    source = TrafficSource(path)
    wider = text(replace(ROUTE, generation=2, share=0.5))
    for end in range(len(wider) - 2):  # the last character is a newline, without which it is whole
        path.write_text(wider[:end])
        source.refresh()
        assert source.traffic.of("support") == ROUTE
        assert source.problem is not None
    path.write_text(wider)
    assert source.refresh()
    assert source.problem is None
    assert source.traffic.of("support").share == 0.5


def test_a_file_that_is_gone_changes_nothing_and_one_that_was_never_there_gives_legacy_all(tmp_path: Path) -> None:
    path = tmp_path / "traffic.json"
    source = TrafficSource(path)
    assert source.traffic.of("support").share == 0
    assert "cannot be read" in (source.problem or "")
    path.write_text(text(ROUTE))
    source.refresh()
    path.unlink()
    source.refresh()
    assert source.traffic.of("support") == ROUTE
    assert "cannot be read" in (source.problem or "")
    path.write_text(text(ROUTE))
    source.refresh()
    assert source.problem is None


def test_a_writer_that_comes_late_does_not_raise_the_share_again(tmp_path: Path) -> None:
    path = tmp_path / "traffic.json"
    path.write_text(text(ROUTE))
    source = TrafficSource(path)
    path.write_text(text(replace(ROUTE, generation=3, share=0.0)))
    source.refresh()
    path.write_text(text(replace(ROUTE, generation=2, share=0.5)))
    source.refresh()
    assert source.traffic.of("support").share == 0
    assert "a higher one is needed" in (source.problem or "")


def test_it_is_followed_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "traffic.json"
    source = TrafficSource(path)
    changed = threading.Event()
    source.follow(lambda: changed.set() if source.traffic.of("support").share else None)
    path.write_text(text(ROUTE))
    assert changed.wait(10)
    source.stop()


@pytest.mark.parametrize(
    "content",
    [
        '{"version": 1, "routes": {"support": {"attempt": 1, "generation": 2, "stage": 0, "share": %s}}}' % ("9" * 400),
        '{"version": 1, "routes": {"support": {"attempt": 1, "generation": 2, "stage": 0, "share": %s}}}'
        % ("9" * 5000),
        '{"version": %s, "routes": {}}' % ("9" * 400),
        "[" * 100_000,
        "\ud800".encode("utf-8", "surrogatepass"),
    ],
    ids=["400 digits", "5000 digits", "version", "nested", "surrogate"],
)
def test_no_content_ends_the_thread_and_the_next_good_file_is_followed(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "traffic.json"
    path.write_text(text(ROUTE))
    source = TrafficSource(path)
    bad, good = threading.Event(), threading.Event()

    def look() -> None:
        if source.problem:
            bad.set()
        if source.traffic.of("support").share == 0.5:
            good.set()

    source.follow(look)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    assert bad.wait(10)
    assert source.traffic.of("support") == ROUTE
    path.write_text(text(replace(ROUTE, generation=2, share=0.5)))
    assert good.wait(10)
    source.stop()


def test_a_mistake_of_what_is_done_with_each_look_is_told_and_ends_nothing(tmp_path: Path) -> None:
    path = tmp_path / "traffic.json"
    path.write_text(text(ROUTE))
    source = TrafficSource(path)
    calls: list[str | None] = []
    seen = threading.Event()

    def fails() -> None:
        calls.append(source.problem)
        if len(calls) > 1:
            seen.set()
        message = "the disk is gone"
        raise RuntimeError(message)

    source.follow(fails)
    assert seen.wait(10)
    assert "the disk is gone" in (calls[-1] or "")
    source.stop()


def test_a_bad_entry_keeps_no_other_workload_from_giving_the_target_less(tmp_path: Path) -> None:
    path = tmp_path / "traffic.json"
    other, unsaid = replace(ROUTE, workload="search"), replace(ROUTE, workload="unsaid")
    path.write_text(print_traffic(Traffic({"support": ROUTE, "search": other, "unsaid": unsaid})))
    source = TrafficSource(path)
    killed, wider = replace(ROUTE, generation=2, killed=True), replace(other, generation=2, share=0.5)
    document = json.loads(print_traffic(Traffic({"support": killed, "search": wider})))
    document["routes"]["third"] = {"attempt": 1, "generation": 1, "stage": 0, "share": 9**400}
    path.write_text(json.dumps(document))
    assert source.refresh()
    assert source.traffic.of("support") == killed
    assert source.traffic.of("search") == other  # nothing is given to the target by a file that is wrong somewhere
    assert source.traffic.of("unsaid") == unsaid
    assert "routes.third" in (source.problem or "")
    assert source.traffic.of("third").share == 0
