"""The chain against a live OpenAI-compatible server: measured speed, priced tokens, failures kept."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests.pipeline.conftest import Place, logged_call
from tests.scripted_endpoint import Ask, Reply, ScriptedEndpoint

if TYPE_CHECKING:
    from collections.abc import Callable

ITEMS = 220
PRICE = {"input_usd_per_million": 0.1, "output_usd_per_million": 0.2, "source": "invented for the test"}
DEARER = {"input_usd_per_million": 5.0, "output_usd_per_million": 15.0, "source": "invented for the test"}


def number_of(ask: Ask) -> str:
    return ask.prompt.removesuffix("?").split()[-1]


def right(ask: Ask) -> Reply:
    return Reply(json.dumps({"answer": number_of(ask)}))


def target_at(endpoint: ScriptedEndpoint, **changes: Any) -> dict[str, Any]:
    return {
        "engine": "endpoint",
        "model": "target-model",
        "url": endpoint.url,
        "price": PRICE,
        "concurrency": 4,
    } | changes


def write_timed_log(place: Place) -> None:
    place.write_log(
        [
            logged_call(at, ttft_ms=2_000.0 + at % 7, latency_ms=4_000.0, input_tokens=8, output_tokens=3)
            for at in range(ITEMS)
        ]
    )


def test_speed_and_cost_are_measured_and_gate(place: Place) -> None:
    write_timed_log(place)
    with ScriptedEndpoint(right) as endpoint:
        verdict = place.migrate(
            place.declare(
                target=target_at(endpoint),
                legacy={"model": "legacy-model", "logs": "../log-*.jsonl", "price": DEARER},
                sign_off={"quality_margin": 0.05, "waive": ["safety"]},
            )
        )
    assert verdict.verdict == "GO", verdict.reasons
    assert verdict.speed.status == "met"
    assert verdict.speed.n_measured == ITEMS
    assert verdict.speed.target_ttft_p95_ms is not None
    assert 0 < verdict.speed.target_ttft_p95_ms < 2_000  # however slow the machine is
    assert verdict.cost["status"] == "met"
    assert verdict.cost["target"]["output_tokens"] > 0
    assert set(endpoint.asked.values()) == {1}
    assert endpoint.most_in_flight <= 4


def test_a_second_run_pays_for_nothing_and_a_fresh_one_asks_again(place: Place) -> None:
    write_timed_log(place)
    with ScriptedEndpoint(right) as endpoint:
        declared = place.declare(target=target_at(endpoint))
        first = place.migrate(declared)
        assert place.migrate(declared).to_json() == first.to_json()
        assert len(endpoint.asks) == ITEMS
        place.migrate(declared, epoch="again")
        assert len(endpoint.asks) == 2 * ITEMS


def failing(until: int) -> Callable[[Ask], Reply]:
    return lambda ask: (
        Reply("not this one", status=422) if int(number_of(ask)) % 10 == 0 and ask.nth < until else right(ask)
    )


def test_failures_are_kept_with_their_reason_and_never_pass(place: Place) -> None:
    write_timed_log(place)
    with ScriptedEndpoint(failing(99)) as endpoint:
        verdict = place.migrate(place.declare(target=target_at(endpoint)))
    assert verdict.verdict == "INCONCLUSIVE"
    assert verdict.missingness.only_target_unmeasured == ITEMS // 10
    answers = place.artifacts.read(place.artifacts.load_manifest("target_answers", "support"))  # type: ignore[arg-type]
    failed = answers.filter(answers["status"] == "failed")
    assert failed.height == ITEMS // 10
    assert all("422" in reason for reason in failed["reason"])


def test_a_rate_limit_is_waited_out(place: Place) -> None:
    write_timed_log(place)

    def limited(ask: Ask) -> Reply:
        return Reply("slow down", status=429, headers={"Retry-After": "0"}) if ask.nth == 1 else right(ask)

    with ScriptedEndpoint(limited) as endpoint:
        verdict = place.migrate(place.declare(target=target_at(endpoint)))
    assert verdict.verdict == "GO"
    assert verdict.missingness.target_unmeasured == 0
