"""Notices reach real receivers at least once, in order and under one id, whatever the receivers or a kill do."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import yaml

from anven_pipelines.domain.rollout_status import stream_of
from anven_pipelines.resources import notice_delivery, notices
from anven_pipelines.resources.migrations import Migrations
from anven_pipelines.resources.notices import MOST_WAITING, Notices
from anven_pipelines.resources.state_store import StateStore
from tests.receivers import Hook, Mailbox, hook, mailbox, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
SLACK = {"kind": "slack", "url_env": "SLACK_URL"}
WEBHOOK = {"kind": "webhook", "url_env": "HOOK_URL", "token_env": "HOOK_TOKEN"}


class Desk(NamedTuple):
    """A workload's log and its receivers."""

    folder: Path
    notices: Notices

    def declare(self, *receivers: dict[str, Any]) -> None:
        """Say who is told."""
        migration = {
            "workload": "support",
            "legacy": {"model": "m", "logs": "none.jsonl"},
            "target": {"engine": "nano", "model": "anven-nano"},
            "grading": [{"kind": "exact"}],
            "rollout": {"notify": list(receivers)},
        }
        (self.folder / "migrations").mkdir(exist_ok=True)
        (self.folder / "migrations" / "support.yaml").write_text(yaml.safe_dump(migration))

    def act(self, kind: str, *, at: datetime = NOW, **payload: Any) -> str:
        """Write an event as the controller does; return the id of its notice."""
        key = f"{kind}-{at.isoformat()}"
        event = self.notices.state.append(stream=stream_of("support"), kind=kind, key=key, payload=payload, now=at)
        return event.hash[:32]

    def deliver(self, *, at: datetime = NOW) -> list[dict[str, Any]]:
        return self.notices.deliver("support", now=at)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    state = StateStore(url=f"sqlite:///{tmp_path / 'state.db'}")
    migrations = Migrations(folder=str(tmp_path / "migrations"))
    return Desk(tmp_path, Notices(state=state, migrations=migrations, folder=str(tmp_path / "notices")))


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hook]:
    with hook() as server:
        monkeypatch.setenv("SLACK_URL", server.url)
        monkeypatch.setenv("HOOK_URL", server.url)
        monkeypatch.setenv("HOOK_TOKEN", "sesame")
        yield server


@pytest.fixture
def mail() -> Iterator[Mailbox]:
    with mailbox() as server:
        yield server


def letter_to(mail: Mailbox, **more: Any) -> dict[str, Any]:
    where = {"server": "127.0.0.1", "port": mail.port, "security": "none"}
    return {"kind": "email", "to": ["ops@example.org"], "sender": "anven@example.org", **where, **more}


def test_each_kind_of_receiver_gets_a_change_once_with_its_id(desk: Desk, web: Hook, mail: Mailbox) -> None:
    desk.declare(SLACK, WEBHOOK, letter_to(mail))
    started = desk.act("started", who="<ada & bo>", plan="p", planned=None)
    assert desk.notices.is_due("support", now=NOW)

    told = desk.deliver()

    assert [each["problem"] for each in told] == [None, None, None]
    slack, webhook = sorted(web.got, key=len)
    assert webhook["id"] == started
    assert (webhook["workload"], webhook["change"], webhook["generation"]) == ("support", "start", 1)
    assert "rollout started by &lt;ada &amp; bo&gt;" in slack["text"]
    assert started in slack["text"]
    assert {each["idempotency-key"] for each in web.headers} == {started}
    assert [each.get("authorization") for each in web.headers].count("Bearer sesame") == 1
    [letter] = mail.letters
    assert (letter["Message-ID"], letter["X-Anven-Notice"]) == (f"<{started}@anven.invalid>", started)
    assert mail.to == ["ops@example.org"]
    assert letter["Subject"].startswith("support: rollout started by")
    assert "Next: " in str(letter.get_payload())
    assert not desk.notices.is_due("support", now=NOW)
    desk.deliver()
    assert (len(web.got), len(mail.letters)) == (2, 1)


def test_a_receiver_that_fails_is_tried_again_ever_more_seldom_and_gets_all_of_it_in_order(
    desk: Desk, web: Hook
) -> None:
    desk.declare(WEBHOOK)
    ids = [desk.act("started", who="ada", plan="p", planned=None), desk.act("paused", who="bo")]
    web.status = 500
    at = NOW
    waits = []
    for _ in range(10):
        [found] = desk.deliver(at=at)
        assert (found["problem"], found["waiting"]) == ("webhook HOOK_URL answered with 500", 2)
        due = datetime.fromisoformat(found["next_at"])
        waits.append((due - at).total_seconds())
        assert not desk.notices.is_due("support", now=due - timedelta(seconds=1))
        asked = len(web.got)
        desk.deliver(at=due - timedelta(seconds=1))
        assert len(web.got) == asked
        at = due
    assert waits == [15, 30, 60, 120, 240, 480, 960, 1920, 3600, 3600]
    assert found["dead"]
    web.status, web.got[:] = 200, []

    [found] = desk.deliver(at=at)

    assert [each["id"] for each in web.got] == ids
    assert (found["problem"], found["failures"], found["dead"], found["waiting"]) == (None, 0, False, 0)


@pytest.mark.parametrize("drip", [False, True])
def test_a_receiver_that_never_answers_is_given_up_in_time_and_delays_no_other(
    desk: Desk, web: Hook, mail: Mailbox, monkeypatch: pytest.MonkeyPatch, *, drip: bool
) -> None:
    monkeypatch.setattr(notice_delivery, "TIMEOUT_S", 2.0)
    monkeypatch.setattr(notice_delivery, "LONGEST_S", 3.0)
    desk.declare(WEBHOOK, letter_to(mail))
    web.status, web.drip = None, drip
    desk.act("started", who="ada", plan="p", planned=None)

    slow, letter = desk.deliver()

    problem = "webhook HOOK_URL took longer than 3 s" if drip else "webhook HOOK_URL cannot be reached: ReadTimeout"
    assert (slow["problem"], slow["waiting"]) == (problem, 1)
    assert (letter["problem"], len(mail.letters)) == (None, 1)


def test_a_receiver_that_is_down_is_told_and_its_url_is_not(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLACK_URL", "http://127.0.0.1:9/secret-path")
    monkeypatch.delenv("HOOK_URL", raising=False)
    desk.declare(SLACK, WEBHOOK, {"kind": "webhook", "url_env": "ODD_URL"}, letter_to(Mailbox(port=9)))
    monkeypatch.setenv("ODD_URL", "no url, but a secret")
    desk.act("started", who="ada", plan="p", planned=None)

    problems = [each["problem"] for each in desk.deliver()]

    assert problems[0] == "slack SLACK_URL cannot be reached: ConnectError"
    assert "the environment variable HOOK_URL is not set or empty" in problems[1]
    assert problems[2] == "webhook ODD_URL cannot be reached: UnsupportedProtocol"
    assert problems[3] == "email ops@example.org cannot be reached: ConnectionRefusedError"
    assert "secret" not in "".join(problems)


def test_a_notice_that_a_receiver_does_not_take_is_dropped_and_counted_and_keeps_no_other(
    desk: Desk, web: Hook, mail: Mailbox
) -> None:
    desk.declare(WEBHOOK, letter_to(mail))
    web.status, mail.refusal = 400, "554 no such letters"
    desk.act("started", who="ada", plan="p", planned=None)
    at = NOW
    for _ in range(3):
        desk.deliver(at=at)
        at += timedelta(hours=1)
    web.status, mail.refusal = 200, None
    paused = desk.act("paused", who="bo", at=at)

    told = desk.deliver(at=at)

    assert [(each["dropped"], each["waiting"], each["problem"]) for each in told] == [(1, 0, None)] * 2
    assert web.got[-1]["id"] == mail.letters[-1]["X-Anven-Notice"] == paused
    assert len(mail.letters) == 1


def test_what_waits_is_bounded_and_the_newest_stays(desk: Desk, web: Hook) -> None:
    desk.declare(WEBHOOK)
    web.status = 500
    desk.act("started", who="ada", plan="p", planned=None)
    desk.deliver()
    ids = [
        desk.act("drilled", passed=False, seconds=None, reasons=[], at=NOW + timedelta(seconds=number))
        for number in range(MOST_WAITING + 20)
    ]
    web.status, web.got[:] = 200, []

    [found] = desk.deliver(at=NOW + timedelta(hours=1))

    assert [each["id"] for each in web.got] == ids[-MOST_WAITING:]
    assert (found["dropped"], found["waiting"]) == (21, 0)


def test_a_receiver_gets_what_it_asked_for_and_a_new_one_what_happened_lately(desk: Desk, web: Hook) -> None:
    desk.declare(WEBHOOK)
    old, at = desk.act("started", who="ada", plan="p", planned=None, at=NOW - timedelta(days=2)), NOW
    paused = desk.act("paused", who="bo", at=NOW - timedelta(hours=2))
    desk.deliver(at=at)
    assert [each["id"] for each in web.got] == [paused]
    assert old not in str(web.got)
    desk.declare(WEBHOOK | {"only": ["abort"]})
    desk.act("resumed", who="bo", at=NOW + timedelta(minutes=1))
    aborted = desk.act("aborted", who="bo", at=NOW + timedelta(minutes=2))
    web.got.clear()
    desk.deliver(at=NOW + timedelta(minutes=3))
    assert [each["id"] for each in web.got] == [aborted]


def test_where_it_cannot_be_written_that_a_notice_was_sent_none_is(
    desk: Desk, web: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.declare(WEBHOOK)
    desk.act("started", who="ada", plan="p", planned=None)
    assert desk.notices.is_due("support", now=NOW)  # takes the receiver down

    def full(*_: Any) -> None:
        message = "no space left"
        raise OSError(message)

    with monkeypatch.context() as broken:
        broken.setattr(Notices, "_write", full)
        [found] = desk.deliver()
        assert (found["problem"], web.got) == ("no space left", [])
    desk.deliver()
    assert len(web.got) == 1


DELIVER = """
import sys
from datetime import datetime, UTC
from anven_pipelines.resources.migrations import Migrations
from anven_pipelines.resources.notices import Notices
from anven_pipelines.resources.state_store import StateStore

folder = sys.argv[1]
state = StateStore(url=f"sqlite:///{folder}/state.db")
Notices(state=state, migrations=Migrations(folder=f"{folder}/migrations"), folder=f"{folder}/notices").deliver(
    "support", now=datetime.fromisoformat(sys.argv[2])
)
"""


def test_a_delivery_that_is_killed_is_made_again_under_the_same_id(desk: Desk, web: Hook) -> None:
    desk.declare(WEBHOOK)
    started = desk.act("started", who="ada", plan="p", planned=None)
    web.status = None  # it has the notice, and has not answered
    command = [sys.executable, "-c", DELIVER, str(desk.folder), NOW.isoformat()]
    with subprocess.Popen(command, env=os.environ) as process:
        until(lambda: web.got)
        process.kill()
    web.status = 200

    desk.deliver()
    desk.deliver()

    assert [each["id"] for each in web.got] == [started, started]


def test_two_deliveries_at_once_tell_a_receiver_once(desk: Desk, web: Hook) -> None:
    desk.declare(WEBHOOK)
    desk.act("started", who="ada", plan="p", planned=None)
    web.status = None
    command = [sys.executable, "-c", DELIVER, str(desk.folder), NOW.isoformat()]
    with subprocess.Popen(command, env=os.environ) as process:
        until(lambda: web.got)
        desk.deliver()
        assert len(web.got) == 1
        process.kill()


def test_a_receiver_whose_lock_cannot_be_had_is_told_of_and_the_others_are_served(
    desk: Desk, web: Hook, mail: Mailbox
) -> None:
    desk.declare(letter_to(mail), WEBHOOK)
    desk.act("started", who="ada", plan="p", planned=None)
    assert desk.notices.is_due("support", now=NOW)  # takes the receivers down
    [kept] = (desk.folder / "notices" / "support").glob("email-*.json")
    lock = kept.with_name(f".{kept.name}.lock")
    lock.mkdir()

    letter, webhook = desk.deliver()

    assert letter["problem"].startswith(f"{lock} cannot be locked (Is a directory)")
    assert (letter["waiting"], mail.letters) == (1, [])
    assert (webhook["problem"], len(web.got)) == (None, 1)
    lock.rmdir()
    assert [each["problem"] for each in desk.deliver()] == [None, None]
    assert len(mail.letters) == 1


def test_receivers_of_a_migration_file_that_is_gone_are_told_as_when_the_attempt_began(desk: Desk, web: Hook) -> None:
    desk.declare(WEBHOOK)
    planned = {"rollout": {"notify": [WEBHOOK]}, "metrics": []}
    (desk.folder / "migrations" / "support.yaml").unlink()
    started = desk.act("started", who="ada", plan="p", planned=planned)
    desk.deliver()
    assert [each["id"] for each in web.got] == [started]


def test_a_mail_server_that_cannot_encrypt_gets_no_letter(desk: Desk, mail: Mailbox) -> None:
    desk.declare(letter_to(mail, security="starttls"))
    desk.act("started", who="ada", plan="p", planned=None)
    [found] = desk.deliver()
    assert found["problem"] == "email ops@example.org cannot be reached: SMTPNotSupportedError"
    assert mail.letters == []


def test_the_bounds_of_a_delivery_are_shorter_than_a_minute() -> None:
    assert notices.DELIVER_S + 2 * notice_delivery.LONGEST_S <= 60


@pytest.mark.parametrize("status", [200, 500])
def test_no_log_holds_the_url_or_the_token(
    desk: Desk, web: Hook, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    """The HTTP client tells every URL that it asks, and a webhook's is a secret."""
    loggers = [logging.getLogger(name) for name in ("httpx", "httpcore")]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.DEBUG)
    web.status = status
    desk.declare(SLACK, WEBHOOK)
    desk.act("started", who="ada", plan="p", planned=None)

    with caplog.at_level(logging.DEBUG):
        desk.deliver()

    assert len(web.got) == 2
    assert web.url not in caplog.text
    assert "sesame" not in caplog.text
    for each, level in zip(loggers, levels, strict=True):
        each.setLevel(level)
