"""Assignment by keyed hash, and the traffic file."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from anven_pipelines.domain.errors import InvalidInput
from anven_pipelines.domain.traffic import Route, Traffic, accept, arm_of, bucket, is_mirrored, unit_hash
from anven_pipelines.domain.traffic_file import parse_traffic, print_traffic

KEY = b"sixteen bytes or more of it"
ROUTE = Route("support", attempt=2, generation=7, stage=1, share=0.25)
shares = st.floats(0, 1)
routes = st.builds(
    Route,
    st.text(min_size=1),
    attempt=st.integers(0, 9),
    generation=st.integers(0, 999),
    stage=st.integers(0, 5),
    share=shares,
    shadow=shares,
    killed=st.booleans(),
)


def points(n: int, *, workload: str = "support", attempt: int = 1) -> list[float]:
    return [bucket(KEY, workload=workload, attempt=attempt, unit=f"user {number}") for number in range(n)]


def test_units_spread_evenly() -> None:
    assert stats.kstest(points(20_000), "uniform").pvalue > 0.001


def test_points_of_two_workloads_and_of_two_attempts_are_independent() -> None:
    first = points(5_000)
    for other in (points(5_000, attempt=2), points(5_000, workload="billing")):
        assert abs(float(np.corrcoef(first, other)[0, 1])) < 0.06


def test_the_point_of_a_unit_is_fixed_for_ever() -> None:
    # Across versions: another hash would move users to the other arm in the midst of a rollout.
    assert bucket(KEY, workload="support", attempt=1, unit="user 1") == 0.054971685633486755
    assert unit_hash(KEY, workload="support", unit="user 1") == "a725edd402d598b1e89745082726d005"


@given(st.text(), shares, shares)
def test_a_rising_share_only_moves_units_to_the_target(unit: str, one: float, other: float) -> None:
    point = bucket(KEY, workload="support", attempt=1, unit=unit)
    assert 0 <= point < 1
    low, high = (replace(ROUTE, share=share) for share in sorted((one, other)))
    if arm_of(point, low) == "target":
        assert arm_of(point, high) == "target"


@given(st.floats(0, 1, exclude_max=True))
def test_share_0_gives_nobody_and_share_1_everybody_to_the_target(point: float) -> None:
    assert arm_of(point, replace(ROUTE, share=0.0)) == "legacy"
    assert arm_of(point, replace(ROUTE, share=1.0)) == "target"
    assert arm_of(point, replace(ROUTE, share=1.0, killed=True)) == "legacy"


def test_neither_names_nor_keys_show_in_the_hash_of_a_unit() -> None:
    mine = unit_hash(KEY, workload="support", unit="ada@example.com")
    assert mine != unit_hash(KEY + b"!", workload="support", unit="ada@example.com")
    assert mine != unit_hash(KEY, workload="billing", unit="ada@example.com")
    assert len(mine) == 32
    assert "ada" not in mine


def test_parts_of_the_hash_do_not_run_into_each_other() -> None:
    assert bucket(KEY, workload="a1", attempt=1, unit="x") != bucket(KEY, workload="a", attempt=11, unit="x")


def test_a_short_key_is_refused() -> None:
    with pytest.raises(InvalidInput, match="the key has 5 bytes; at least 16"):
        bucket(b"short", workload="support", attempt=1, unit="u")


def test_requests_are_mirrored_at_the_share_and_never_of_a_killed_workload() -> None:
    route = replace(ROUTE, shadow=0.2)
    mirrored = sum(is_mirrored(KEY, route, request_id=str(number)) for number in range(5_000))
    assert 850 < mirrored < 1_150
    assert not any(is_mirrored(KEY, replace(route, killed=True), request_id=str(number)) for number in range(100))
    assert not any(is_mirrored(KEY, ROUTE, request_id=str(number)) for number in range(100))


@given(st.lists(routes, max_size=4, unique_by=lambda route: route.workload))
def test_a_traffic_file_reads_back_as_written(listed: list[Route]) -> None:
    traffic = Traffic({route.workload: route for route in listed})
    assert parse_traffic(print_traffic(traffic), source="traffic.json") == traffic


def test_a_workload_without_a_route_is_served_by_legacy() -> None:
    assert Traffic().of("support") == Route("support", attempt=0, generation=0, stage=0, share=0.0)


GOOD: dict[str, Any] = {"attempt": 1, "generation": 2, "stage": 0, "share": 0.05}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Expecting value"),
        (print_traffic(Traffic({"a": replace(ROUTE, workload="a")}))[:40], "line"),
        (b"\xff\xfe", "codec"),
        ("[]", "found list; an object with `version` and `routes`"),
        ('{"version": 1}', "found \\['version'\\]"),
        ('{"version": 2, "routes": {}}', "version is 2; 1 is needed"),
        ('{"version": 1, "routes": []}', "routes is \\[\\]; an object"),
        ('{"version": 1, "routes": {"a": 0.5}}', "routes.a is 0.5; an object"),
        ('{"version": 1, "routes": {}, "routes": {}}', "'routes' stands there twice"),
        (json.dumps({"version": 1, "routes": {"a": {}}}), "routes.a lacks attempt, generation, share, stage"),
    ],
)
def test_bad_content_is_one_clear_error(text: str | bytes, reason: str) -> None:
    with pytest.raises(InvalidInput, match=rf"^traffic.json: .*{reason}.*stay in force"):
        parse_traffic(text, source="traffic.json")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"share": 5}, r"routes.a.share is 5; a number from 0 to 1 \(3 % is 0.03\)"),
        ({"share": float("nan")}, "routes.a.share is nan"),
        ({"share": "0.5"}, "routes.a.share is '0.5'"),
        ({"share": True}, "routes.a.share is True"),
        ({"shadow": -0.1}, "routes.a.shadow is -0.1"),
        ({"generation": 1.5}, "routes.a.generation is 1.5; a whole number"),
        ({"attempt": None}, "routes.a.attempt is None"),
        ({"stage": -1}, "routes.a.stage is -1"),
        ({"killed": "no"}, "routes.a.killed is 'no'"),
        ({"weight": 3}, "routes.a has weight, which is unknown"),
    ],
)
def test_a_value_out_of_its_range_is_named(change: dict[str, Any], reason: str) -> None:
    text = json.dumps({"version": 1, "routes": {"a": GOOD | change}})
    with pytest.raises(InvalidInput, match=reason):
        parse_traffic(text, source="traffic.json")


HELD = Traffic({"support": ROUTE})


@pytest.mark.parametrize(
    "read",
    [
        replace(ROUTE, generation=8, share=0.5),
        replace(ROUTE, generation=8, attempt=3, share=0.01),
        replace(ROUTE, generation=3, share=0.1),
        replace(ROUTE, generation=0, share=0.9, killed=True),
        replace(ROUTE, attempt=1, generation=0, share=0.0),
        ROUTE,
    ],
)
def test_newer_routes_and_those_that_take_traffic_away_act(read: Route) -> None:
    assert accept(HELD, Traffic({"support": read}), highest={"support": 7}) == (Traffic({"support": read}), ())


@pytest.mark.parametrize(
    "read",
    [
        replace(ROUTE, share=0.5),
        replace(ROUTE, generation=6, share=0.5),
        replace(ROUTE, generation=6, attempt=1),
        replace(ROUTE, generation=6, shadow=0.1),
        replace(ROUTE, stage=2, shadow=0.1),
    ],
)
def test_a_stale_writer_gives_the_target_nothing(read: Route) -> None:
    traffic, refused = accept(HELD, Traffic({"support": read}), highest={"support": 7})
    assert traffic == HELD
    assert "a higher one is needed" in refused[0]


def test_a_kill_is_lifted_by_a_new_generation_or_where_the_target_has_no_share() -> None:
    held = Traffic({"support": replace(ROUTE, killed=True)})
    assert accept(held, HELD, highest={"support": 7}).traffic == held
    newer = Traffic({"support": replace(ROUTE, generation=8)})
    assert accept(held, newer, highest={"support": 7}).traffic == newer
    aborted, lifted = (Traffic({"support": replace(ROUTE, share=0.0, killed=killed)}) for killed in (True, False))
    assert accept(aborted, lifted, highest={"support": 7}) == (lifted, ())
    assert accept(aborted, lifted, highest={"support": 7}, bad={"other"}).traffic == aborted
    assert accept(aborted, lifted, highest={"support": 8}).traffic == aborted  # an older file is in force


def test_people_set_what_is_mirrored_in_the_generation_that_is_in_force() -> None:
    more = Traffic({"support": replace(ROUTE, shadow=0.5)})
    assert accept(HELD, more, highest={"support": 7}) == (more, ())
    assert accept(HELD, more, highest={"support": 7}, bad={"other"}).traffic == HELD
    assert accept(HELD, more, highest={"support": 8}).traffic == HELD  # an older file was put in force, which gave less


def test_a_route_that_is_gone_from_the_file_is_gone() -> None:
    assert accept(HELD, Traffic(), highest={"support": 7}).traffic.of("support").share == 0
