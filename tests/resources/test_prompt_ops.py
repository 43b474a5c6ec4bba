"""llama-prompt-ops as a strategy, with a stand-in that obeys its files; tests/prompt_ops runs the real one."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from anven_pipelines.domain.errors import InvalidInput, UnavailableService
from anven_pipelines.domain.prompt_template import Candidate, PromptTemplate, unchanged
from anven_pipelines.resources.pace import Pace
from anven_pipelines.resources.prompt_ops import PromptOpsStrategy
from anven_pipelines.resources.prompt_ops_process import command_of, require_installed
from anven_pipelines.resources.prompt_ops_result import Optimised, Shot, candidate_of
from anven_pipelines.resources.reflector import ReflectionBudget, Reflector
from anven_pipelines.spec_target import EndpointTarget
from tests.fakes.answered_trial import AnsweredTrial
from tests.fakes.folder_checkpoint import FolderCheckpoint
from tests.scripted_endpoint import Ask, Reply, ScriptedEndpoint

if TYPE_CHECKING:
    from collections.abc import Callable

STAND_IN = Path(__file__).resolve().parents[1] / "fakes" / "prompt_ops_stand_in.py"
KEYS = {"TARGET_KEY": "key-of-the-target", "PROPOSER_KEY": "key-of-the-proposer"}
TEMPLATE = PromptTemplate(name="capitals", system="You are helpful.", user="{question}", slots=("question",))
BETTER = "Answer with the name alone."


def trial(items: int = 12, **changes: Any) -> AnsweredTrial:
    fields: dict[str, Any] = {
        "template": TEMPLATE,
        "inputs": [{"question": f"capital of C{number}?"} for number in range(items)],
        "right": [f"CITY{number}" for number in range(items)],
        "target": lambda messages: "",
    }
    return AnsweredTrial(**{**fields, **changes})


async def no_wait(_: float) -> None:
    pass


@dataclass
class Bench:
    """Runs the strategy against two scripted endpoints with a key each."""

    folder: Path
    propose: Callable[[Ask], Reply] = lambda _: Reply(BETTER)
    answer: Callable[[Ask], Reply] = lambda ask: Reply(f"CITY{ask.prompt.partition('C')[2].rstrip('?')}")
    target: list[Ask] = field(default_factory=list)
    proposer: list[Ask] = field(default_factory=list)

    def search(self, trial: AnsweredTrial, mode: str = "well", **changes: Any) -> Candidate:
        calls = changes.pop("calls", 100)
        keys = changes.pop("keys", KEYS)
        with (
            ScriptedEndpoint(self.answer, api_key=KEYS["TARGET_KEY"]) as target,
            ScriptedEndpoint(self.propose, api_key=KEYS["PROPOSER_KEY"]) as proposer,
        ):

            def client(url: str, key: str) -> Reflector:
                endpoint = EndpointTarget(
                    engine="endpoint", model="m", url=url, api_key_env=key, max_attempts=2, timeout="5s"
                )
                pace = Pace(sleep=no_wait, jitter=lambda: 0.0)
                kept = FolderCheckpoint(self.folder / key)
                return Reflector(endpoint, kept, ReflectionBudget(calls=calls), environ=keys, pace=pace)

            fields: dict[str, Any] = {
                "command": [sys.executable, str(STAND_IN), mode],
                "target": lambda: client(target.url, "TARGET_KEY"),
                "proposer": lambda: client(proposer.url, "PROPOSER_KEY"),
                "timeout_s": 60.0,
            }
            try:
                strategy = PromptOpsStrategy(**{**fields, **changes})
                return strategy.search(trial, rng=np.random.default_rng(7))
            finally:
                self.target += target.asks
                self.proposer += proposer.asks


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_its_result_becomes_a_candidate(bench: Bench, capfd: pytest.CaptureFixture[str]) -> None:
    graded = []

    def grade(item: int, answer: str) -> float:
        graded.append((item, answer))
        return 1.0

    asked = trial(grader=grade)
    found = bench.search(asked)
    assert found.asked({"question": "capital of X?"}) == [
        {"role": "system", "content": BETTER},
        {"role": "user", "content": "capital of C0?"},
        {"role": "assistant", "content": "CITY0"},
        {"role": "user", "content": "capital of X?"},
    ]
    assert (found.origin, found.moves) == ("prompt-ops", {"rewritten": "the system message", "examples": "1"})
    assert sorted(graded) == [(item, f"CITY{item}") for item in range(12)]
    assert [ask.prompt for ask in bench.proposer] == ["improve: You are helpful."]
    assert len(bench.target) == asked.account.calls == 12
    assert asked.rewriting.calls == 1
    assert asked.account.tokens > 12
    assert capfd.readouterr() == ("", "")


def test_a_second_run_pays_for_nothing(bench: Bench) -> None:
    first = bench.search(trial())
    # The endpoints have other ports now, so what is kept is found by what was asked.
    again = trial()
    assert bench.search(again) == first
    assert (again.account.calls, again.rewriting.calls) == (12, 1), "what was kept counts as it did"
    assert (len(bench.target), len(bench.proposer)) == (12, 1)


@pytest.mark.parametrize(
    ("mode", "changes", "reason"),
    [
        ("well", {"trial": trial(must_hold=("Never guess.",))}, "its result was refused: the candidate lacks"),
        ("well", {"trial": trial(items=3)}, "3 items have a right answer; 4 are needed"),
        ("well", {"trial": trial(right=[None] * 12)}, "0 items have a right answer; 4 are needed"),
        ("dear", {"calls": 20}, "20 of 20 calls to 'm' are used"),
        ("well", {"calls": 11}, "calls to 'm' are used"),
    ],
    ids=["breaks a constraint", "few items", "no right answers", "proposer's budget", "target's budget"],
)
def test_a_result_that_cannot_be_used_leaves_the_prompt_with_the_reason(
    bench: Bench, mode: str, changes: dict[str, Any], reason: str
) -> None:
    found = bench.search(changes.pop("trial", trial()), mode, **changes)
    assert found.version == unchanged(TEMPLATE).version
    assert reason in found.moves["prompt-ops"]
    assert max(len(bench.target), len(bench.proposer)) <= 20


@pytest.mark.parametrize(
    ("mode", "changes", "error", "said"),
    [
        ("crash", {}, UnavailableService, "status 1.*the optimiser fell over"),
        ("hang", {"timeout_s": 1.5}, UnavailableService, "no result within 1.5 s"),
        ("writes nothing", {}, UnavailableService, "wrote no result"),
        ("another form", {}, UnavailableService, "cannot be read"),
        ("well", {"command": ["/nowhere/python"]}, InvalidInput, "cannot be started"),
        ("well", {"keys": {**KEYS, "PROPOSER_KEY": "wrong"}}, InvalidInput, "refused 1 requests"),
        ("well", {"keys": {"TARGET_KEY": "k"}}, InvalidInput, "PROPOSER_KEY is not set"),
    ],
)
def test_a_failure_says_what_happened(
    bench: Bench, mode: str, changes: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        bench.search(trial(), mode, **changes)


def test_a_model_that_is_down_ends_the_run_at_once(bench: Bench) -> None:
    bench.answer = lambda _: Reply("down", status=503)
    with pytest.raises(UnavailableService, match="HTTP 503"):
        bench.search(trial())


def test_a_grader_that_fails_ends_the_run_with_its_error(bench: Bench) -> None:
    def grade(item: int, answer: str) -> float:
        message = f"the pattern for {answer!r} takes too long"
        raise InvalidInput(message)

    with pytest.raises(InvalidInput, match="takes too long"):
        bench.search(trial(grader=grade))


def test_an_interrupt_leaves_no_process_behind(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def interrupt() -> None:
        deadline = time.monotonic() + 30
        while not list(tmp_path.glob("anven-prompt-ops-*/hanging")) and time.monotonic() < deadline:
            time.sleep(0.05)
        signal.raise_signal(signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        bench.search(trial(), "hang")
    thread.join()
    assert not list(tmp_path.glob("anven-prompt-ops-*"))
    assert running(STAND_IN.name) == []


def running(name: str) -> list[str]:
    """Return the command lines of processes that run a program."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_text()
        except OSError:
            continue
        if name in command and process.name != str(os.getpid()):
            found.append(command)
    return found


def test_no_key_reaches_the_program(bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TARGET_KEY", KEYS["TARGET_KEY"])
    told = tmp_path / "environment"
    program = tmp_path / "program.py"
    program.write_text(f"import os, pathlib; pathlib.Path({str(told)!r}).write_text(repr(dict(os.environ)))")
    with pytest.raises(UnavailableService, match="wrote no result"):
        bench.search(trial(), command=[sys.executable, str(program)])
    assert not any(key in told.read_text() for key in KEYS.values())


def test_an_example_that_looks_like_a_slot_is_left_out() -> None:
    found = Optimised("", (Shot("what is {question}?", "a slot"), Shot("2 + 2", "4")))
    messages = candidate_of(TEMPLATE, found, origin="prompt-ops").messages
    assert [message.content for message in messages] == ["2 + 2", "4", "{question}"]


@pytest.mark.parametrize("environ", [{}, {"ANVEN_PROMPT_OPS_PYTHON": "/nowhere/python"}])
def test_an_environment_that_is_not_there_is_named(environ: dict[str, str]) -> None:
    with pytest.raises(InvalidInput, match="ANVEN_PROMPT_OPS_PYTHON"):
        command_of(environ)


@pytest.mark.parametrize(
    ("python", "said"), [(sys.executable, ""), ("/bin/ls", " ("), ("/nowhere/python", " ([Errno 2] No such file")]
)
def test_an_environment_without_the_program_is_named(python: str, said: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(f"{python!r}, whose environment has no llama-prompt-ops{said}")):
        require_installed([python])
