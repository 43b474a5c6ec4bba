"""A workload of little traffic, through the gateway's log and the event store: mirrored requests let it go on."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from anven_pipelines.domain.errors import InvalidInput
from anven_pipelines.domain.gateway_event import MIRRORED, GatewayEvent, parse_event
from anven_pipelines.domain.rollout import Advance, Hold, RollBack
from anven_pipelines.domain.rollout_report import report_of
from anven_pipelines.domain.rollout_status import stream_of
from tests.running_rollout import NOW, ROLLOUT, begun, event_log, serve, share_in_force

if TYPE_CHECKING:
    from anven_pipelines.domain.rollout import Decision
    from anven_pipelines.resources.rollouts import Rollouts
    from tests.pipeline.conftest import Place

SHARE = 0.125
LITTLE: dict[str, Any] = {
    **ROLLOUT,
    "stages": [{"share": SHARE, "soak": "24h"}, {"share": 1.0, "soak": "24h"}],
    # What 2,000 users prove at a share of an eighth by themselves, but for the errors.
    "limits": {"errors": 0.015, "safety": 0.1, "quality": 0.3, "ttft_ms": 1000, "latency_ms": 2000},
}
TOPPED_UP = LITTLE | {"shadow_top_up": 0.6}


def busy(place: Place, *, mirrored: float = 1.0, fails: float = 0.0, prompt: str | None = None, **change: Any) -> None:
    """Write the day of 2,000 users, some 250 of them the target's, and of those requests of legacy's that it mirrored.

    Args:
        place: Where.
        mirrored: Share of the drawn ones that the target was asked.
        fails: Share of these that it failed.
        prompt: Version of the prompt that these were asked with.
        change: What is written otherwise in every request.
    """
    serve(place, 2_000, share=SHARE, flags=(MIRRORED,), **change)
    rng = np.random.default_rng(4)
    [written] = event_log(place).glob("w1-*.jsonl")
    requests = [parse_event(line) for line in written.read_bytes().splitlines()]
    drawn = [each for each in requests if each.kind == "request" and each.intended == "legacy"]
    lines = [
        shadow_of(each, seq, fails=bool(rng.random() < fails), prompt=prompt).to_line()
        for seq, each in enumerate(drawn[: round(len(drawn) * mirrored)])
    ]
    (event_log(place) / "mirror-000000.jsonl").write_bytes(b"".join(lines))


def shadow_of(request: GatewayEvent, seq: int, *, fails: bool, prompt: str | None) -> GatewayEvent:
    told = json.loads(request.to_line()) | {"event_id": f"s{seq}", "kind": "shadow", "worker": "mirror", "seq": seq}
    told |= {
        "prompt_version": prompt,
        "flags": [],
        "served": None if fails else "target",
        "status": "error" if fails else "ok",
    }
    told |= {"cost_usd": None if fails else 0.001, "error_class": "Timeout" if fails else None}
    return parse_event(json.dumps({name: value for name, value in told.items() if value is not None}))


def decided(rollouts: Rollouts) -> Decision:
    return rollouts.step("support", now=NOW).decision


def test_little_traffic_holds(place: Place) -> None:
    rollouts = begun(place, LITTLE)
    busy(place)

    decision = decided(rollouts)

    assert isinstance(decision, Hold)
    few, errors = decision.reasons
    assert few.endswith(" of 500 units of target")
    assert errors.startswith("not proven: errors")
    assert "mirrored" not in errors
    assert share_in_force(rollouts) == SHARE


def test_little_traffic_that_is_topped_up_goes_on_and_the_log_says_by_what(place: Place) -> None:
    rollouts = begun(place, TOPPED_UP)
    busy(place)

    found = rollouts.look("support", now=NOW)
    assert isinstance(found.decision, Advance), found.decision
    report = report_of(found.plan, found.status, found.evidence, found.decision, found.status)
    states = {row["metric"]: row["state"] for row in report["evidence"]}
    assert (states["errors"], states["quality"], states["ttft"]) == ("proven by mirrored requests", "proven", "proven")
    assert report["units"]["mirrored"] > 1_700

    assert isinstance(decided(rollouts), Advance)
    assert share_in_force(rollouts) == 1.0
    told = "; ".join(place.state.events(stream_of("support"))[-1].payload["reasons"])
    assert "(proven by the mirrored requests)" in told
    assert "units of target and " in told


@pytest.mark.parametrize(
    ("traffic", "reason"),
    [
        ({"mirrored": 0.98}, "that were drawn to be mirrored tell of it, 99% are needed"),
        ({"fails": 0.03}, "not proven: errors"),
        ({"flags": ()}, " of 500 units of target"),
        ({"generation": 0}, "no event has come yet"),
    ],
    ids=["a cap cut the mirroring off", "the target fails what is mirrored", "nothing was drawn", "another generation"],
)
def test_what_mirrored_requests_do_not_show_holds(place: Place, traffic: dict[str, Any], reason: str) -> None:
    rollouts = begun(place, TOPPED_UP)
    change = {name: value for name, value in traffic.items() if name not in ("mirrored", "fails")}
    shadows = {name: value for name, value in traffic.items() if name in ("mirrored", "fails")}
    if "flags" in change:
        serve(place, 2_000, share=SHARE)
    else:
        busy(place, **shadows, **change)

    decision = decided(rollouts)

    assert isinstance(decision, Hold)
    assert any(reason in told for told in decision.reasons), decision.reasons
    assert share_in_force(rollouts) == SHARE


def test_a_log_that_is_delivered_twice_is_no_more_evidence(place: Place) -> None:
    """A gateway that is started anew, or a log that is copied, hands in what was read before."""
    rollouts = begun(place, TOPPED_UP)
    busy(place, fails=0.003)
    once = rollouts.look("support", now=NOW).evidence
    for written in list(event_log(place).glob("*.jsonl")):
        (event_log(place) / f"{written.stem[:-6]}900000.jsonl").write_bytes(written.read_bytes())

    again = rollouts.look("support", now=NOW).evidence

    assert again.of("errors").mirrored is not None
    assert (again.comparisons, again.assignment) == (once.comparisons, once.assignment)


def test_mirrored_requests_that_all_fail_roll_nothing_back(place: Place) -> None:
    rollouts = begun(place, TOPPED_UP)
    busy(place, fails=1.0)

    assert isinstance(decided(rollouts), Hold)
    assert share_in_force(rollouts) == SHARE


def test_good_mirrored_requests_hide_no_harm_to_users(place: Place) -> None:
    rollouts = begun(place, TOPPED_UP)
    busy(place, errors=0.5)

    assert isinstance(decided(rollouts), RollBack)


def test_answers_to_mirrored_requests_that_had_another_prompt_are_no_evidence(place: Place) -> None:
    rollouts = begun(place, TOPPED_UP)
    busy(place, prompt="of another search")

    decision = decided(rollouts)

    assert isinstance(decision, Hold)
    assert any("prompt" in told for told in decision.reasons), decision.reasons


def test_counters_pair_nothing(place: Place) -> None:
    metrics = {"source": "prometheus", "url": "http://prometheus:9090"}
    with pytest.raises(InvalidInput, match=r"`shadow_top_up` of 0 is needed with `source: prometheus`, found 0.6"):
        place.declare(rollout=TOPPED_UP | {"metrics": metrics})
