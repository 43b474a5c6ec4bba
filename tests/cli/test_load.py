"""`anven load` as a person and a script meet it."""

from __future__ import annotations

import json
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.cli.test_cli import anven
from tests.pipeline.conftest import logged_call
from tests.scripted_endpoint import Reply, ScriptedEndpoint

if TYPE_CHECKING:
    from pathlib import Path

# Generous: a busy machine stalls for seconds, and the driver may be late by a tenth of the limit.
LOAD = {"slo": {"ttft_ms": 100_000, "share": 0.9}, "rates": [15, 16], "duration": "3s", "warm_up": 2}


def declared(folder: Path, target: dict[str, Any], **changes: Any) -> str:
    (folder / "calls.jsonl").write_text("".join(json.dumps(logged_call(at)) + "\n" for at in range(160)))
    migration = {
        "workload": "support",
        "legacy": {"model": "legacy-model", "logs": "calls.jsonl"},
        "target": target,
        "grading": [{"kind": "json_field", "field": "answer"}],
        "golden": {"size": "all", "holdout": 0.5},
        "sign_off": {"quality_margin": 0.05},
    }
    (folder / "m.yaml").write_text(yaml.safe_dump(migration | changes))
    return str(folder / "m.yaml")


def served(url: str, **changes: Any) -> dict[str, Any]:
    return {"engine": "endpoint", "model": "target-model", "url": url} | changes


@pytest.mark.timeout(400)
def test_a_served_target_is_measured_and_the_ladder_is_shown(tmp_path: Path) -> None:
    with ScriptedEndpoint(lambda _: Reply("one two three")) as endpoint:
        file = declared(tmp_path, served(endpoint.url), load=LOAD | {"replica_usd_per_hour": 3.6})
        done = anven("load", file, folder=tmp_path)
        assert done.returncode == 0, done.stderr
        sent = len(endpoint.asks)
    assert sent == 45 + 48 + 2
    assert "target at 15/s is within: 45 requests, goodput 15/s, TTFT p50 / p95" in done.stderr.replace(
        "load_benchmark: ", ""
    )
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith("target ")]
    assert [row[:4] for row in rows] == [["target", "15", "15", "15"], ["target", "16", "16", "16"]]
    assert {row[-1] for row in rows} == {"within"}
    assert "target: saturation lies above 16 requests per second: 16/s keeps 90.0%" in done.stdout
    assert (
        "capacity: 16 requests per second and replica, 1 for the log's busiest minute (1/s), 0.0625 USD" in done.stdout
    )


@pytest.mark.timeout(400)
def test_a_target_that_keeps_no_rate_exits_with_one_and_one_that_is_silent_with_three(tmp_path: Path) -> None:
    order = count()
    with ScriptedEndpoint(lambda _: Reply("down", status=500) if next(order) % 2 else Reply("one two")) as endpoint:
        done = anven("load", declared(tmp_path, served(endpoint.url), load=LOAD), "--json", folder=tmp_path)
    assert done.returncode == 1, done.stderr
    report = json.loads(done.stdout)
    assert report["target"]["status"] == "below"
    assert [each["judgement"] for each in report["figures"]] == ["beyond"]
    silent = anven("load", declared(tmp_path, served("http://127.0.0.1:1/v1"), load=LOAD), "--json", folder=tmp_path)
    assert silent.returncode == 3, silent.stderr
    assert "none of 2 warm-up requests was answered" in json.loads(silent.stdout)["target"]["reason"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "m.yaml: the migration file has no section `load`"),
        ({"load": LOAD | {"duration": "1s"}}, "hold each rate for 2 s, or declare higher rates"),
        ({"load": LOAD | {"rates": [2, 1]}}, "load.rates is [2, 1]; needed is 'auto', or a list of rising numbers"),
        (
            {"load": LOAD, "target": {"engine": "recorded", "model": "m", "answers": "calls.jsonl"}},
            "load.url is needed",
        ),
        ({"load": LOAD, "target": served("http://127.0.0.1:1/v1", api_key_env="NO_SUCH_KEY")}, "export NO_SUCH_KEY="),
        (
            {"load": LOAD | {"legacy": {"url": "http://127.0.0.1:1/v1", "api_key_env": "NO_SUCH_KEY"}}},
            "export NO_SUCH_KEY=",
        ),
        ({"load": LOAD, "legacy": {"model": "m", "logs": "none.jsonl"}}, "none.jsonl: does not exist"),
    ],
    ids=["no load", "too short", "broken", "not served", "no key", "no key of legacy", "no log"],
)
def test_what_could_measure_nothing_is_refused_before_anything_is_sent(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    done = anven(
        "load", declared(tmp_path, **({"target": served("http://127.0.0.1:1/v1")} | changes)), "--json", folder=tmp_path
    )
    assert done.returncode == 2
    assert message in json.loads(done.stdout)["error"]["message"]
    assert "Traceback" not in done.stderr
    assert "load:\n  slo:" in done.stderr or changes
