"""A traffic file that a person broke."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from anven_pipelines.domain.traffic import Route, Traffic
from anven_pipelines.domain.traffic_file import entry_of, parse_traffic, print_traffic, read_traffic_file

SUPPORT = Route("support", attempt=1, generation=3, stage=1, share=0.3, shadow=0.1)
OTHER = Route("other", attempt=2, generation=5, stage=0, share=0.1, killed=True)
GOOD = print_traffic(Traffic({"support": SUPPORT, "other": OTHER}))


def broken(**entries: Any) -> bytes:
    return json.dumps({"version": 1, "routes": {"support": entry_of(SUPPORT), **entries}}).encode()


def test_a_good_file_is_read_and_written_as_before() -> None:
    file = read_traffic_file(GOOD.encode(), source="t.json")
    assert (file.routes, file.bad, file.problem) == ({"support": SUPPORT, "other": OTHER}, {}, None)
    assert file.printed() == GOOD


@pytest.mark.parametrize(
    ("entry", "is_killed"),
    [
        (entry_of(OTHER) | {"share": 1.5, "killed": False}, False),
        (entry_of(OTHER) | {"share": 1.5}, True),
        ({"killed": True}, True),
        ({"killed": "yes"}, True),
        ([], False),
        (None, False),
        ("share", False),
    ],
)
def test_a_bad_entry_stays_as_it_stands_beside_the_good_ones(entry: Any, *, is_killed: bool) -> None:
    file = read_traffic_file(broken(other=entry), source="t.json")

    assert (file.routes, file.is_torn, file.of("other")) == ({"support": SUPPORT}, False, None)
    assert file.is_killed("other") == is_killed
    assert "t.json: routes.other" in (file.problem or "")
    back = replace(SUPPORT, share=0.0, generation=4)
    written = json.loads(file.with_route(back).printed())["routes"]
    assert written == {"support": entry_of(back), "other": entry}


def test_of_a_torn_file_every_whole_entry_is_kept_and_a_torn_one_is_killed() -> None:
    """At each place where it can be cut."""
    for end in range(len(GOOD) - 2):
        file = read_traffic_file(GOOD[:end].encode(), source="t.json")
        assert file.is_torn
        for route in (SUPPORT, OTHER):
            found = file.routes.get(route.workload)
            assert found is None or found == route or (found.killed and found.share == 0)
        parse_traffic(file.with_route(SUPPORT).printed(), source="what is written")
    assert read_traffic_file(GOOD[:-3].encode(), source="t.json").routes == {"support": SUPPORT, "other": OTHER}


@pytest.mark.parametrize(
    "text",
    [
        GOOD.replace('"killed": true', '"killed": true,'),
        GOOD.replace('"killed": true', "killed: true"),
        GOOD.replace('"other"', '"support"'),
    ],
)
def test_an_entry_that_a_person_was_about_to_kill_is_killed(text: str) -> None:
    file = read_traffic_file(text.encode(), source="t.json")
    assert file.is_torn
    name = "support" if '"other"' not in text else "other"
    assert file.is_killed(name)
    if name == "other":
        assert file.routes["support"] == SUPPORT


@pytest.mark.parametrize("text", [b"", b"\xff\xfe", b"[]", b'{"version": 2, "routes": {}}', b"[" * 100_000])
def test_what_holds_no_entry_leaves_all_to_legacy(text: bytes) -> None:
    file = read_traffic_file(text, source="t.json")
    assert (file.routes, file.is_torn) == ({}, True)
    assert file.of("support") == Route("support", attempt=0, generation=0, stage=0, share=0.0)
