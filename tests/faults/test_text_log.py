"""The log of redacted texts: what it keeps, what it never does, and what is left of it when something is killed."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
import weakref
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from anven_pipelines.domain.gateway_text import CONVERSATION_LIMIT, MESSAGES_LIMIT, TEXT_LIMIT, GatewayText, spoken
from anven_pipelines.gateway import texts
from anven_pipelines.gateway.text_writer import Writer, redacted_text
from anven_pipelines.gateway.texts import MOST_DOUBLINGS, TextLog
from anven_pipelines.ingest.event_store import EventStore
from anven_pipelines.ingest.gateway_events import TEXTS, read_batch
from anven_pipelines.resources.redactor import CUT, Redactor, is_installed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = [
    pytest.mark.skipif(not is_installed(), reason="needs the extra `pii` (presidio-analyzer)"),
    pytest.mark.timeout(300),
]

NOW = datetime(2026, 11, 20, tzinfo=UTC)
SECRETS = ("ada@example.com", "4111 1111 1111 1111", "sk-proj-abcdefghijklmnop1234")
CALL = {
    "id": "call_1",
    "function": {"name": "send", "arguments": json.dumps({"to": "ada@example.com", "password": "x"})},
}


PATTERNS = {"support": [r"K-\d+"], "other": [], "slow": [r"(?:[ab]|[ab][ab])+$"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("log") / "texts"


@pytest.fixture(scope="module")
def log(folder: Path) -> Iterator[TextLog]:
    made = TextLog(folder, worker="w", patterns=PATTERNS)  # its process takes seconds to start
    yield made
    made.close(60.0)


def keep(log: TextLog, name: str, **changes: Any) -> bool:
    said = [{"role": "user", "content": f"{' and '.join(SECRETS)}, K-77"}]
    answer = {"role": "assistant", "content": "to ada@example.com"}
    given = {"kind": "request", "ts": NOW, "workload": "support", "request_id": name, "messages": said}
    return log.append(**{**given, "answer": answer, **changes})


def kept(folder: Path, name: str) -> dict[str, Any]:
    """Return the row of a request, when it is written."""

    def found() -> list[dict[str, Any]]:
        return read_batch(folder, {}, TEXTS).events.filter(request_id=name).rows(named=True) if folder.exists() else []

    until(lambda: bool(found()))
    [row] = found()
    return row


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_is_kept_is_redacted_and_tied_to_its_request(log: TextLog, folder: Path) -> None:
    before = log.status.written
    assert keep(log, "first")
    assert keep(log, "second", workload="other", messages=None, kind="shadow")
    first, second = kept(folder, "first"), kept(folder, "second")
    assert (first["kind"], first["workload"], first["ts"]) == ("request", "support", NOW)
    assert json.loads(first["messages"]) == [
        {"role": "user", "content": "<EMAIL_ADDRESS> and <CREDIT_CARD> and <SECRET>, <REDACTED>"}
    ]
    assert json.loads(first["answer"]) == {"role": "assistant", "content": "to <EMAIL_ADDRESS>"}
    assert json.loads(first["found"]) == {"CREDIT_CARD": 1, "EMAIL_ADDRESS": 2, "REDACTED": 1, "SECRET": 1}
    assert (second["kind"], second["messages"], second["problem"]) == ("shadow", None, None)
    until(lambda: log.status == (before + 2, 0, 0, 0, None))


def test_nobody_else_may_read_them_and_no_file_holds_a_text_as_it_was(log: TextLog, folder: Path) -> None:
    keep(log, "private")
    kept(folder, "private")
    files = [path for path in folder.iterdir() if path.is_file()]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not [path for path in files for secret in SECRETS if secret.encode() in path.read_bytes()]


def test_tool_calls_are_redacted_and_what_is_no_text_is_left_out(log: TextLog, folder: Path) -> None:
    parts = [
        {"type": "text", "text": "see"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,YWRh"}},
        {"type": "text", "text": "ada@example.com"},
    ]
    messages = [{"role": "user", "name": "Ada", "content": parts}, {"role": "assistant", "tool_calls": [CALL]}, "odd"]
    keep(log, "tools", messages=messages, answer={"role": "assistant", "content": None, "tool_calls": [CALL]})
    row = kept(folder, "tools")
    called = [{"id": "call_1", "name": "send", "arguments": '{"to": "<EMAIL_ADDRESS>", "password": "<SECRET>"}'}]
    assert json.loads(row["messages"]) == [
        {"role": "user", "content": "see\n<EMAIL_ADDRESS>"},
        {"role": "assistant", "tool_calls": called},
        {},
    ]
    assert json.loads(row["answer"]) == {"role": "assistant", "tool_calls": called}
    assert row["left_out"] == 2


def test_a_long_text_is_cut(log: TextLog, folder: Path) -> None:
    keep(log, "long", messages=[{"role": "user", "content": "many words " * 10_000}])
    row = kept(folder, "long")
    [message] = json.loads(row["messages"])
    assert len(message["content"]) == TEXT_LIMIT + len(CUT)
    assert row["cut"] == 1


def test_of_a_long_conversation_the_newest_messages_stay() -> None:
    said, left_out = spoken([{"role": "user", "content": f"m{each}"} for each in range(MESSAGES_LIMIT + 5)], beyond=0)
    assert (len(said), left_out, said[-1]["content"]) == (MESSAGES_LIMIT, 5, f"m{MESSAGES_LIMIT + 4}")
    said, left_out = spoken([{"role": "user", "content": f"{each}" * 16_000} for each in range(1, 21)], beyond=0)
    assert len(said) + left_out == 20
    assert sum(len(each["content"]) for each in said) <= CONVERSATION_LIMIT


def test_a_text_that_cannot_be_redacted_is_not_kept_and_counted(log: TextLog, folder: Path) -> None:
    before = log.status
    keep(log, "bad", workload="slow", messages=[{"role": "user", "content": "ab" * 200 + "!"}])
    keep(log, "good", workload="slow", messages=[], answer=None)
    bad, good = kept(folder, "bad"), kept(folder, "good")
    assert (bad["messages"], bad["answer"], bad["found"]) == (None, None, None)
    assert bad["problem"] == "a text of 401 characters could not be redacted (TimeoutError)"
    assert (good["messages"], good["answer"], good["problem"]) == ("[]", None, None)
    until(lambda: (log.status.written, log.status.failed) == (before.written + 1, before.failed + 1))


def test_a_request_whose_texts_take_too_long_together_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anven_pipelines.gateway.text_writer.RECORD_SECONDS", -1.0)
    record = {"kind": "request", "workload": "w", "request_id": None, "left_out": 0, "ts": NOW.isoformat()}
    text = redacted_text({**record, "messages": ["ada"], "answer": None}, Redactor(), worker="w", seq=1)
    assert (text.messages, text.problem) == (None, "a request's texts took too long")


def test_taking_a_text_waits_for_nothing_and_what_is_too_much_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "QUEUED", 5)
    log = TextLog(tmp_path, worker="w", patterns={"support": []})
    taken = [keep(log, f"{number}") for number in range(2_000)]  # the redactor takes seconds to load
    log.close(120.0)
    assert not all(taken)
    assert log.status.written + log.status.dropped == 2_000
    assert log.status.written == taken.count(True)


def test_a_full_log_loses_its_oldest_texts_though_nobody_has_ingested_them(tmp_path: Path) -> None:
    writer = Writer({"folder": str(tmp_path), "worker": "w", "total_bytes": 10_000, "patterns": {"support": []}})
    record = {"kind": "request", "workload": "support", "left_out": 0, "ts": NOW.isoformat()}
    for number in range(100):
        said: dict[str, Any] = {"request_id": f"{number}", "messages": [], "answer": None}
        writer.write(json.dumps({**record, **said}).encode())
        writer.rest()
    assert writer.status == {"written": 100, "failed": 0, "dropped": 0, "problem": None}
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 10_000
    kept = [int(each) for each in read_batch(tmp_path, {}, TEXTS).events["request_id"]]
    assert kept == list(range(100 - len(kept), 100))
    assert 10 < len(kept) < 100


def test_where_what_is_being_written_fills_the_log_the_new_is_dropped_and_counted(tmp_path: Path) -> None:
    (tmp_path / "x-000001.jsonl.open").write_bytes(b"x" * 10_000)
    writer = Writer({"folder": str(tmp_path), "worker": "w", "total_bytes": 10_000, "patterns": {"support": []}})
    record = {"kind": "request", "workload": "support", "request_id": "r", "left_out": 0, "ts": NOW.isoformat()}
    writer.write(json.dumps({**record, "messages": [], "answer": None}).encode())
    assert (writer.status["written"], writer.status["dropped"]) == (0, 1)
    assert "10,000 bytes that are being written; what is new is dropped" in writer.status["problem"]


def test_a_writer_that_is_killed_is_started_again(log: TextLog, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "RESTART_S", 0.1)
    keep(log, "before")
    kept(folder, "before")
    until(lambda: log.status.waiting == 0)
    assert log._writer is not None
    before, dead = log.status, weakref.ref(log._writer)
    os.kill(log._writer.process.pid, signal.SIGKILL)
    until(lambda: dead() is None)  # of a log that runs for months nothing gathers
    assert log.status[:3] == before[:3]
    keep(log, "after")
    kept(folder, "after")
    batch = read_batch(folder, {}, TEXTS)
    assert batch.bad_lines == ()
    assert batch.events["worker"].n_unique() == 2


def test_a_writer_that_cannot_be_started_is_tried_less_and_less_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texts, "RESTART_S", 0.001)
    monkeypatch.setattr(sys, "executable", "false")  # ends at once
    log = TextLog(tmp_path / "texts", worker="w", patterns={"support": []})
    pauses = set()

    def tried() -> bool:
        pauses.add(log._pause_s)
        return log._failures > MOST_DOUBLINGS + 1

    until(tried)
    assert max(pauses) == log._pause_s == 0.064
    assert log.status.problem is not None
    monkeypatch.undo()
    keep(log, "first")
    kept(tmp_path / "texts", "first")
    until(lambda: log.status.written == 1)
    assert log._writer is not None
    os.kill(log._writer.process.pid, signal.SIGKILL)
    until(lambda: log._writer is None)
    assert log._failures <= 1
    log.close()


def test_no_file_of_the_folder_it_is_started_in_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "regex.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    log = TextLog(tmp_path / "texts", worker="w", patterns={"support": []})
    keep(log, "first")
    kept(tmp_path / "texts", "first")
    log.close()


GATEWAY = """
import sys, time
from datetime import UTC, datetime
from pathlib import Path
from anven_pipelines.gateway.texts import TextLog
log = TextLog(Path(sys.argv[1]), worker="w", patterns={"support": []})
said = [{"role": "user", "content": "ada@example.com " * 50}]
for number in range(100):
    known = {"kind": "request", "ts": datetime.now(UTC), "workload": "support", "request_id": str(number)}
    log.append(**known, messages=said, answer=None)
while log.status.written < 10:
    time.sleep(0.01)
print("now", flush=True)
time.sleep(600)
"""


def test_a_gateway_that_is_killed_loses_nothing_that_was_handed_over(tmp_path: Path) -> None:
    folder, store = tmp_path / "texts", EventStore(tmp_path / "store", TEXTS)
    with subprocess.Popen([sys.executable, "-c", GATEWAY, str(folder)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "now\n"
        store.ingest(folder)
        process.kill()
    until(lambda: not list(folder.glob("*.open")))  # the writer has ended
    found = store.ingest(folder)
    assert (found.bad_lines, found.torn, found.duplicates) == ((), {}, 0)
    events = store.events()
    numbers = [int(each) for each in events["request_id"]]
    assert numbers == list(range(len(numbers)))  # in order, without a gap
    assert len(numbers) >= 10
    assert events["messages"].str.contains("<EMAIL_ADDRESS>", literal=True).all()
    assert not events["messages"].str.contains("@", literal=True).any()


def test_half_an_emoji_stands_in_no_line(tmp_path: Path) -> None:
    writer = Writer({"folder": str(tmp_path), "worker": "w", "total_bytes": 2**30, "patterns": {"support": []}})
    record = {"kind": "request", "workload": "support", "request_id": "r", "left_out": 0, "ts": NOW.isoformat()}
    cut = '{"to": "ada@example.com", "said": "h\u00e9 \\ud83d"}'
    writer.write(json.dumps({**record, "messages": [{"content": cut}], "answer": {"content": "\ud83d"}}).encode())
    writer.close()
    store = EventStore(tmp_path / "store", TEXTS)
    assert store.ingest(tmp_path).bad_lines == ()
    [row] = store.events().rows(named=True)
    assert json.loads(json.loads(row["messages"])[0]["content"]) == {"to": "<EMAIL_ADDRESS>", "said": "h\u00e9 ?"}
    assert json.loads(row["answer"]) == {"content": "?"}


@pytest.mark.parametrize("name", ["messages", "answer", "problem", "request_id", "worker"])
def test_a_line_with_half_an_emoji_keeps_no_other_from_being_read(tmp_path: Path, name: str) -> None:
    good = GatewayText(event_id="t-1", kind="request", ts=NOW, worker="w", seq=1, workload="support").to_line()
    bad = {**json.loads(good), "event_id": "t-2", name: "\ud83d"}
    (tmp_path / "w-000001.jsonl").write_bytes(json.dumps(bad).encode() + b"\n" + good)
    batch = read_batch(tmp_path, {}, TEXTS)
    assert batch.events["event_id"].to_list() == ["t-1"]
    assert [each.reason for each in batch.bad_lines] == ["the line is no text of the gateway (UnicodeEncodeError)"]


def test_a_line_that_is_no_text_is_told_and_kept_out(tmp_path: Path) -> None:
    (tmp_path / "w-000001.jsonl").write_bytes(b'{"kind": "request"}\nno json\n[]\n')
    batch = read_batch(tmp_path, {}, TEXTS)
    assert batch.events.is_empty()
    assert [each.reason for each in batch.bad_lines] == [
        "the line is no text of the gateway: its fields are others",
        "the line is no text of the gateway (JSONDecodeError)",
        "the line is no text of the gateway: its fields are others",
    ]
