"""A running gateway that keeps the texts of one workload, redacted, and those of another not at all."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from anven_pipelines.ingest.gateway_events import TEXTS, read_batch
from anven_pipelines.resources.redactor import is_installed
from tests.gateway_proxy import Gateway, gateway
from tests.scripted_endpoint import Reply

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.skipif(not is_installed(), reason="needs the extra `pii` (presidio-analyzer)"),
    pytest.mark.timeout(500),
]

EMAIL, CARD, KEY, ORDER = "ada.lovelace@example.com", "4111 1111 1111 1111", "sk-proj-abcdefghijklmnop1234", "K-445566"
SAID = f"Q: mail {EMAIL}, card {CARD}, key {KEY}, customer {ORDER}"
REDACTED = "mail <EMAIL_ADDRESS>, card <CREDIT_CARD>, key <SECRET>, customer <REDACTED>"


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    workloads: dict[str, dict[str, Any]] = {
        "kept": {"gateway": {"store_text": True, "redact": [r"K-\d{6}"]}},
        "silent": {},
    }
    with gateway(tmp_path_factory.mktemp("texts"), workloads) as started:
        started.arms.legacy = lambda _: Reply(json.dumps({"answer": f"legacy wrote to {EMAIL}"}))
        started.arms.target = lambda _: Reply(json.dumps({"answer": f"target wrote to {EMAIL}"}))
        yield started


def text_of(gate: Gateway, request_id: str, kind: str = "request") -> dict[str, Any]:
    """Return the kept text of a request, when it is written."""
    folder = gate.started.events / "texts"

    def found() -> list[dict[str, Any]]:
        return read_batch(folder, {}, TEXTS).events.filter(request_id=request_id, kind=kind).rows(named=True)

    gate.until(lambda: bool(found()))
    [row] = found()
    return row


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("arm", ["legacy", "target"])
def test_what_was_asked_and_answered_is_kept_redacted_beside_its_event(
    gate: Gateway, arm: str, *, stream: bool
) -> None:
    gate.routed("kept", float(arm == "target"))
    answer = gate.ask("kept", "ada", content=SAID, stream=stream)
    assert EMAIL in answer.text or stream  # the client gets it as it is; a stream's chunks cut it
    request_id = answer.headers["x-litellm-call-id"]
    [event] = gate.events(request_id).rows(named=True)
    text = text_of(gate, request_id)
    assert (event["served"], text["workload"]) == (arm, "kept")
    assert json.loads(text["messages"]) == [{"role": "user", "content": f"Q: {REDACTED}"}]
    told = json.loads(text["answer"])
    assert (told["role"], json.loads(told["content"])) == ("assistant", {"answer": f"{arm} wrote to <EMAIL_ADDRESS>"})


def test_a_shadows_answer_is_kept_too(gate: Gateway) -> None:
    gate.routed("kept", 0.0, shadow=1.0)
    answer = gate.ask("kept", "ada", content=SAID)
    text = text_of(gate, answer.headers["x-litellm-call-id"], kind="shadow")
    assert text["messages"] is None
    assert "target wrote to <EMAIL_ADDRESS>" in json.loads(text["answer"])["content"]


def test_an_error_keeps_what_was_asked(gate: Gateway) -> None:
    gate.routed("kept", 0.0)
    before, gate.arms.legacy = gate.arms.legacy, lambda _: Reply("no", status=400)
    answer = gate.ask("kept", "ada", content=SAID)
    gate.arms.legacy = before
    assert answer.status_code == 400
    text = text_of(gate, answer.headers["x-litellm-call-id"])
    assert (REDACTED in text["messages"], text["answer"]) == (True, None)


def test_a_workload_that_did_not_ask_for_it_has_no_text(gate: Gateway) -> None:
    silent = gate.ask("silent", "ada", content=SAID).headers["x-litellm-call-id"]
    after = gate.ask("kept", "ada", content=SAID).headers["x-litellm-call-id"]
    gate.events(silent)
    text_of(gate, after)
    texts = read_batch(gate.started.events / "texts", {}, TEXTS).events
    assert texts.filter(request_id=silent).is_empty()
    assert gate.status()["texts"]["failed"] == 0
    assert "anven_texts_failed_total" in gate.client.get("/anven/metrics").text


def test_after_a_kill_the_handed_over_is_there_and_no_file_holds_what_was_said(gate: Gateway) -> None:
    asked = [gate.ask("kept", f"user {number}", content=SAID).headers["x-litellm-call-id"] for number in range(5)]
    gate.events(*asked)
    gate.until(lambda: gate.status()["texts"]["waiting"] == 0)
    os.kill(gate.started.process.pid, signal.SIGKILL)
    for each in asked:
        assert REDACTED in text_of(gate, each)["messages"]
    batch = read_batch(gate.started.events / "texts", {}, TEXTS)
    assert batch.bad_lines == ()
    for path in gate.started.events.rglob("*"):
        data = path.read_bytes() if path.is_file() else b""
        assert not [word for word in (EMAIL, CARD, KEY, ORDER) if word.encode() in data], path
