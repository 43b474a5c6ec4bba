"""llama-prompt-ops, run in its own environment, as one more strategy that looks for a better prompt.

It knows one address and one key for both of its models, asks the same question again after every restart, and its
packages do not go with ours. So it is started as a process of its own that knows a single address, a door on this
machine's loopback: behind it this process asks the target and the proposing model within their budgets, keeps their
answers, and grades. No key leaves this process, and a search that was killed is answered from what is kept.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import shutil
import signal
import subprocess
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import yaml

from anven_pipelines.domain.errors import InvalidInput, UnavailableService
from anven_pipelines.domain.prompt_strategy import BudgetSpent
from anven_pipelines.domain.prompt_template import SLOT, Candidate, TemplateMessage, fill, unchanged
from anven_pipelines.resources.environment import PRIVACY
from anven_pipelines.resources.reflector import Conversation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import numpy as np

    from anven_pipelines.domain.prompt_strategy import Trial
    from anven_pipelines.domain.prompt_template import PromptTemplate
    from anven_pipelines.resources.reflector import Reflector, Reply

_log = logging.getLogger(__name__)

PYTHON: Final = "ANVEN_PROMPT_OPS_PYTHON"
LEAST_ITEMS: Final = 4  # fewer it refuses

_SIDE: Final = Path(__file__).with_name("prompt_ops_side.py")
_LOOK_SECONDS: Final = 0.1
_GRACE_SECONDS: Final = 5.0
_SHOWN_LINES: Final = 8
_KEPT_VARIABLES: Final = ("PATH", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH")  # none of them holds a key


class Shot(NamedTuple):
    """An example that it chose."""

    question: str
    answer: str


class Optimised(NamedTuple):
    """What it found: the text of the system message, and examples."""

    system: str
    shots: tuple[Shot, ...]


def command_of(environ: Mapping[str, str]) -> list[str]:
    """Return what starts llama-prompt-ops.

    Raises:
        InvalidInput: the environment names no Python, or one that is not there.
    """
    python = environ.get(PYTHON, "")
    if not python or shutil.which(python) is None:
        found = f"is {python!r}, which does not run" if python else "is not set"
        message = (
            f"the strategy prompt-ops needs the Python of an environment with llama-prompt-ops, and {PYTHON} {found}; "
            f"make one (python3 -m venv DIR, DIR/bin/pip install llama-prompt-ops) and export {PYTHON}=DIR/bin/python"
        )
        raise InvalidInput(message)
    return [python, "-I", "-m", "llama_prompt_ops.interfaces.cli"]


@dataclass(frozen=True)
class PromptOpsStrategy:
    """Looks for a better system message and examples with llama-prompt-ops.

    Attributes:
        command: Starts it, as `command_of` returns it.
        target: Makes the client of the target, with a fresh budget; a question that repeats is asked once.
        proposer: Makes the client of the model that proposes, with a fresh budget.
        timeout_s: Longest run.
        strategy: Its `basic` takes `settings`; its `llama` adds formatting of its own and takes none.
        settings: Arguments of its basic strategy, such as `num_trials` and `use_llama_tips`.
        items: At most so many items are used, half to choose examples from and half to score with.
        max_tokens: Longest answer of a model, where its endpoint's params say nothing else.
    """

    command: Sequence[str]
    target: Callable[[], Reflector]
    proposer: Callable[[], Reflector]
    timeout_s: float
    strategy: Literal["basic", "llama"] = "basic"
    settings: Mapping[str, Any] = field(default_factory=dict)
    items: int = 100
    max_tokens: int = 2048
    name: str = "prompt-ops"

    def search(self, trial: Trial, *, rng: np.random.Generator) -> Candidate:
        """Return what it found; the unchanged prompt, with the reason in `moves`, where that cannot be used.

        Raises:
            InvalidInput: an endpoint refuses what it is asked.
            UnavailableService: an endpoint does not answer, or the program fails or takes too long.
        """
        questions = _questions(trial, self.items)
        if len(questions) < LEAST_ITEMS:
            return self._refused(trial, f"{len(questions)} items have a right answer; {LEAST_ITEMS} are needed")
        seed = int(rng.integers(2**31))
        try:
            found = self._run(trial, questions, seed)
        except BudgetSpent as spent:
            return self._refused(trial, f"it had no result when the budget ended: {spent}")
        candidate = candidate_of(trial.template, found, origin=self.name)
        if refusal := trial.refusal(candidate):
            return self._refused(trial, f"its result was refused: {refusal}")
        return candidate

    def _run(self, trial: Trial, questions: Mapping[str, int], seed: int) -> Optimised:
        target, proposer = self.target(), self.proposer()
        target.asks_anew = False
        target.account, proposer.account = trial.account, trial.rewriting
        desk = _Desk(
            {"target": target, "proposer": proposer},
            lambda asked, said: trial.grade_answer(questions[asked], said),
        )
        with TemporaryDirectory(prefix="anven-prompt-ops-") as scratch, _open_door(desk) as door:
            folder = Path(scratch)
            self._write(folder, trial, questions, door, seed)
            environment = {
                **{name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ},
                **PRIVACY,
                "HOME": scratch,
                "DSPY_CACHEDIR": f"{scratch}/cache",
                "NO_PROXY": "127.0.0.1",
                "ANVEN_DOOR": door.url,
                "ANVEN_DOOR_KEY": door.key,
                "ANVEN_MAX_TOKENS": str(self.max_tokens),
            }
            arguments = [
                "migrate",
                "--config",
                "config.yaml",
                "--api-key-env",
                "ANVEN_DOOR_KEY",
                "--dotenv-path",
                "none",
            ]
            self._wait(desk, [*self.command, *arguments], folder, environment)
            return read_result(folder)

    def _write(self, folder: Path, trial: Trial, questions: Mapping[str, int], door: _Door, seed: int) -> None:
        """Write what it reads; none of it holds a key of ours."""
        rows = [{"question": question, "answer": trial.right_answer(item)} for question, item in questions.items()]
        (folder / "dataset.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
        (folder / "prompt.txt").write_text(trial.template.system or "", encoding="utf-8")
        shutil.copyfile(_SIDE, folder / "anven_side.py")
        settings = {"seed": seed, **self.settings} if self.strategy == "basic" else {}
        config = {
            "system_prompt": {"file": "prompt.txt", "inputs": ["question"], "outputs": ["answer"]},
            "dataset": {
                "path": "dataset.json",
                "input_field": "question",
                "golden_output_field": "answer",
                "train_size": 0.5,
                "validation_size": 0.5,
            },
            "model": {
                "name": "target",
                "task_model": "openai/target",
                "proposer_model": "openai/proposer",
                "api_base": f"{door.url}/v1",
                "max_tokens": self.max_tokens,
                "temperature": 0.0,
            },
            "metric": {"class": str(folder / "anven_side.py")},
            "strategy": {"type": self.strategy, **settings},
            "output": {"prefix": "result"},
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")

    def _wait(self, desk: _Desk, command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
        """Run it to its end, and no longer than anybody waits for it.

        Raises:
            InvalidInput: it cannot be started, or an endpoint refuses what it is asked.
            UnavailableService: it failed, or took too long.
            BudgetSpent: what it asked for goes beyond a budget.
        """
        log = folder / "log"
        code = None
        deadline = time.monotonic() + self.timeout_s
        with log.open("wb") as output, _process(command, folder, environment, output) as process:
            while code is None and desk.failure is None and time.monotonic() < deadline:
                with suppress(subprocess.TimeoutExpired):
                    code = process.wait(_LOOK_SECONDS)
        said = " | ".join(_last_lines(log))
        _log.info("prompt-ops ended (status %s): %s", code, said)
        if desk.failure is not None:
            raise desk.failure
        if code is None:
            message = (
                f"llama-prompt-ops had no result within {self.timeout_s:g} s and was stopped; it said last: {said}"
            )
            raise UnavailableService(message)
        if code != 0:
            message = f"llama-prompt-ops ended with status {code}; what was answered is kept; it said last: {said}"
            raise UnavailableService(message)

    def _refused(self, trial: Trial, reason: str) -> Candidate:
        _log.warning("prompt-ops: %s; the prompt stays as it is", reason)
        return unchanged(trial.template).model_copy(update={"moves": {self.name: reason}})


def candidate_of(template: PromptTemplate, found: Optimised, *, origin: str) -> Candidate:
    """Return the candidate for a result: its system text and examples before the template's own user message.

    An example that holds what looks like a slot is left out: it would be filled in with every call.
    """
    shots = [shot for shot in found.shots if not _holds_slot(template, shot)]
    turns = [
        TemplateMessage(role=role, content=text)
        for shot in shots
        for role, text in (("user", shot.question), ("assistant", shot.answer))
    ]
    system = [TemplateMessage(role="system", content=found.system)] if found.system.strip() else []
    return Candidate(
        template=template.name,
        messages=(*system, *(turns or template.examples), TemplateMessage(role="user", content=template.user)),
        moves={"rewritten": "the system message", "examples": str(len(shots))},
        origin=origin,
    )


def read_result(folder: Path) -> Optimised:
    """Read what llama-prompt-ops has written: `results/<prefix>_<time>.json` below its working folder.

    Raises:
        UnavailableService: there is no result, or it is not of the form that version 0.0.8 writes.
    """
    written = sorted((folder / "results").glob("*.json"))
    if not written:
        message = "llama-prompt-ops ended well and wrote no result; version 0.0.8 writes one below `results`"
        raise UnavailableService(message)
    try:
        found = json.loads(written[-1].read_text(encoding="utf-8"))
        shots = [Shot(str(shot["question"]), str(shot["answer"])) for shot in found["few_shots"]]
        return Optimised(str(found["prompt"]), tuple(shots))
    except (ValueError, KeyError, TypeError) as error:
        message = (
            f"the result of llama-prompt-ops cannot be read ({error!r}); version 0.0.8 writes `prompt` and `few_shots`"
        )
        raise UnavailableService(message) from error


@dataclass
class _Waiting:
    """A question of the program, and its reply once there is one."""

    asked: Conversation
    reply: Reply | None = None


@dataclass
class _Desk:
    """Answers what the program asks; the first error ends the run.

    Its threads ask at once, and an endpoint is asked by the batch: whoever gets the lock asks for all who wait.
    """

    models: Mapping[str, Reflector]
    grade: Callable[[str, str], float]
    failure: BaseException | None = None
    _waiting: dict[str, list[_Waiting]] = field(default_factory=lambda: {"target": [], "proposer": []})
    _queueing: threading.Lock = field(default_factory=threading.Lock)
    _asking: threading.Lock = field(default_factory=threading.Lock)
    _grading: threading.Lock = field(default_factory=threading.Lock)

    def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Answer a chat completion request."""
        model = str(body["model"])
        params = {name: body[name] for name in ("temperature", "max_tokens", "top_p", "stop") if name in body}
        mine = _Waiting(Conversation(body["messages"], params))
        with self._queueing:
            self._waiting[model].append(mine)
        with self._asking:
            if mine.reply is None:
                self._ask(model)
        reply = mine.reply
        if reply is None or reply.text is None:
            raise _NoAnswer(reply.reason if reply and reply.reason else "the search has ended")
        choice = {
            "index": 0,
            "finish_reason": "stop" if reply.is_whole else "length",
            "message": {"role": "assistant", "content": reply.text},
        }
        usage = {
            "prompt_tokens": reply.input_tokens,
            "completion_tokens": reply.output_tokens,
            "total_tokens": reply.input_tokens + reply.output_tokens,
        }
        head = {"id": "anven", "object": "chat.completion", "created": 0, "model": model}
        return {**head, "choices": [choice], "usage": usage}

    def score(self, question: str, answer: str) -> float:
        """Grade an answer; graders need not stand being called by several threads."""
        with self._grading:
            try:
                return self.grade(question, answer)
            except Exception as error:
                self.failure = error
                raise _NoAnswer(str(error)) from error

    def _ask(self, model: str) -> None:
        with self._queueing:
            waiting, self._waiting[model] = self._waiting[model], []
        if self.failure is not None:
            return
        try:
            replies = self.models[model].ask([each.asked for each in waiting])
        except Exception as error:  # noqa: BLE001 - raised again where the program is waited for
            self.failure = error
            return
        for each, reply in zip(waiting, replies, strict=True):
            each.reply = reply


class _NoAnswer(Exception):  # noqa: N818 - becomes the body of an HTTP error
    """There is no answer to one question."""


class _Door(NamedTuple):
    """Where the program finds its desk, and the key that only it knows."""

    url: str
    key: str


@contextmanager
def _open_door(desk: _Desk) -> Iterator[_Door]:
    """Serve the desk on a free port of the loopback."""
    key = secrets.token_urlsafe(24)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            """Say nothing."""

        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if not secrets.compare_digest(self.headers.get("Authorization", ""), f"Bearer {key}"):
                self._send(401, {"error": {"message": "another key is needed"}})
                return
            try:
                asked = json.loads(data)
                if self.path == "/grade":
                    found: dict[str, Any] = {"score": desk.score(asked["question"], asked["answer"])}
                else:
                    found = desk.complete(asked)
            except (_NoAnswer, ValueError, KeyError) as error:
                self._send(400, {"error": {"message": str(error)}})
                return
            self._send(200, found)

        def _send(self, status: int, value: Mapping[str, Any]) -> None:
            data = json.dumps(value).encode()
            with suppress(OSError):  # it was stopped while it waited
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - the base class's signature
            """Stay quiet about a program that was stopped while it asked."""

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield _Door(f"http://127.0.0.1:{server.server_address[1]}", key)
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def _process(
    command: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    output: Any,  # noqa: ANN401 - an open file
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program in a session of its own, and leave none of its processes behind."""
    try:
        process = subprocess.Popen(  # noqa: S603 - what the operator named
            command,
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        message = f"llama-prompt-ops cannot be started ({error}); see what {PYTHON} names"
        raise InvalidInput(message) from error
    with process:
        try:
            yield process
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_SECONDS)


def _questions(trial: Trial, most: int) -> dict[str, int]:
    """Return what the user message of each item says, for items with a right answer; equal ones once."""
    found: dict[str, int] = {}
    for item in range(trial.items):
        if len(found) < most and trial.right_answer(item) is not None:
            found.setdefault(fill(trial.template.user, trial.slots(item)), item)
    return found


def _holds_slot(template: PromptTemplate, shot: Shot) -> bool:
    return any(name in template.slots for text in shot for name in SLOT.findall(text))


def _last_lines(log: Path) -> list[str]:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    return [line[-300:] for line in lines if line][-_SHOWN_LINES:]
