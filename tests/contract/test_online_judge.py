"""A running gateway, its redacted texts, a judge over HTTP, and the controller: the whole way of a score."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from anven_pipelines.domain.rollout import RollBack
from anven_pipelines.ingest.gateway_events import TEXTS, read_batch
from anven_pipelines.resources.artifact_store import ArtifactStore
from anven_pipelines.resources.gateway import Gateway as TrafficFile
from anven_pipelines.resources.judge import Judge
from anven_pipelines.resources.migrations import Migrations
from anven_pipelines.resources.online_judge import OnlineJudges
from anven_pipelines.resources.production_metrics import ProductionMetrics
from anven_pipelines.resources.redactor import is_installed
from anven_pipelines.resources.rollouts import Rollouts
from anven_pipelines.resources.state_store import StateStore
from tests.gateway_proxy import KEY, Gateway, gateway
from tests.scripted_endpoint import Reply
from tests.scripted_judge import ScriptedJudge, judged_input, prompt_of
from tests.signed_off import sign_off

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.skipif(not is_installed(), reason="needs the extra `pii` (presidio-analyzer)"),
    pytest.mark.timeout(500),
]

USERS = 120
ROLLOUT: dict[str, Any] = {
    "stages": [{"share": 0.5, "soak": "1h"}, {"share": 1.0, "soak": "1h"}],
    "limits": {"quality": 0.3},
    "settle": "1s",
    "stale": "1d",
}


def judges_of(gate: Gateway, folder: Path) -> OnlineJudges:
    """Return the judges of a control plane that shares the gateway's files; its rollout of `judged` has begun."""
    state = StateStore(url=f"sqlite:///{folder / 'state.db'}")
    artifacts = ArtifactStore(url=str(folder / "artifacts"))
    migrations = Migrations(folder=str(folder))
    rollouts = Rollouts(
        migrations=migrations,
        state=state,
        artifacts=artifacts,
        gateway=TrafficFile(traffic=str(gate.started.traffic)),
        metrics=ProductionMetrics(events=str(gate.started.events), store=str(folder / "ingested")),
    )
    now = datetime.now(UTC)
    sign_off(migrations.of("judged").migration, state, artifacts, now=now)
    rollouts.start("judged", who="ada", now=now)
    return OnlineJudges(rollouts=rollouts, judge=Judge(), url=gate.started.url, folder=str(folder / "to-judge"))


def test_a_target_that_only_the_judge_finds_bad_is_rolled_back_at_the_gateway(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANVEN_GATEWAY_KEY", KEY)
    with ScriptedJudge() as server:
        judge = {"model": "judge", "url": server.url, "rubric": "It is right.", "concurrency": 8}
        declared = {"gateway": {"store_text": True}, "rollout": ROLLOUT | {"judge": judge}}
        with gateway(tmp_path, {"judged": declared}) as gate:
            gate.arms.legacy = lambda _: Reply(json.dumps({"answer": "right, ada@example.com"}))
            gate.arms.target = lambda _: Reply(json.dumps({"answer": "wrong, ada@example.com"}))
            judges = judges_of(gate, tmp_path)
            gate.until(lambda: gate.status()["routes"].get("judged", {}).get("share") == 0.5)
            asked = [gate.ask("judged", f"user {number}").headers["x-litellm-call-id"] for number in range(USERS)]
            arms = dict(gate.events(*asked).select("request_id", "intended").iter_rows())
            texts = gate.started.events / "texts"
            gate.until(lambda: read_batch(texts, {}, TEXTS).events.height == USERS)
            later = datetime.now(UTC) + timedelta(seconds=2)  # all have settled

            report = judges.run("judged", now=later)

            assert report is not None
            assert (report["scored"], report["waiting"], report["problem"]) == (USERS, 0, None)
            scores = gate.events(*asked, kind="feedback")
            assert scores["event_id"].n_unique() == USERS
            found = dict(scores.select("request_id", "score").iter_rows())
            assert found == {request_id: float(arm == "legacy") for request_id, arm in arms.items()}
            given = [judged_input(prompt_of(request)) for request in server.requests]
            assert {each["user_input"] for each in given} == {"Q: hello"}
            assert not [each for each in given if "ada" in each["response"]]
            step = judges.rollouts.step("judged", now=later + timedelta(hours=2))
            assert isinstance(step.decision, RollBack), step.decision.reasons
            assert [reason for reason in step.decision.reasons if not reason.startswith("quality is proven")] == []
            gate.until(lambda: gate.status()["routes"]["judged"]["share"] == 0.0)
            assert gate.arm("judged", "user 1") == "right, ada@example.com"
