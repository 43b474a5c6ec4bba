"""llama-prompt-ops, run in its own environment, as one more strategy that looks for a better prompt.

It knows one address and one key for both of its models, asks the same question again after every restart, and its
packages do not go with ours. So it is started as a process of its own that knows a single address, a door on this
machine's loopback (`prompt_ops_door.py`). No key leaves this process, and a search that was killed is answered from
what is kept.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final, Literal

import yaml

from anven_pipelines.domain.errors import UnavailableService
from anven_pipelines.domain.prompt_strategy import BudgetSpent
from anven_pipelines.domain.prompt_template import fill, unchanged
from anven_pipelines.resources.environment import PRIVACY
from anven_pipelines.resources.prompt_ops_door import Desk, open_door
from anven_pipelines.resources.prompt_ops_process import last_lines, running
from anven_pipelines.resources.prompt_ops_result import candidate_of, read_result

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np

    from anven_pipelines.domain.prompt_strategy import Trial
    from anven_pipelines.domain.prompt_template import Candidate
    from anven_pipelines.resources.prompt_ops_door import Door
    from anven_pipelines.resources.prompt_ops_result import Optimised
    from anven_pipelines.resources.reflector import Reflector

_log = logging.getLogger(__name__)

LEAST_ITEMS: Final = 4  # fewer it refuses

_SIDE: Final = Path(__file__).with_name("prompt_ops_side.py")
_LOOK_SECONDS: Final = 0.1
_ARGUMENTS: Final = ("migrate", "--config", "config.yaml", "--api-key-env", "ANVEN_DOOR_KEY", "--dotenv-path", "none")
_KEPT_VARIABLES: Final = ("PATH", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH")  # none of them holds a key


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
        desk = Desk(
            {"target": target, "proposer": proposer},
            lambda asked, said: trial.grade_answer(questions[asked], said),
        )
        with TemporaryDirectory(prefix="anven-prompt-ops-") as scratch, open_door(desk) as door:
            folder = Path(scratch)
            self._write(folder, trial, questions, door, seed)
            self._wait(desk, [*self.command, *_ARGUMENTS], folder, self._environment(scratch, door))
            return read_result(folder)

    def _environment(self, scratch: str, door: Door) -> dict[str, str]:
        return {
            **{name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ},
            **PRIVACY,
            "HOME": scratch,
            "DSPY_CACHEDIR": f"{scratch}/cache",
            "NO_PROXY": "127.0.0.1",
            "ANVEN_DOOR": door.url,
            "ANVEN_DOOR_KEY": door.key,
            "ANVEN_MAX_TOKENS": str(self.max_tokens),
        }

    def _write(self, folder: Path, trial: Trial, questions: Mapping[str, int], door: Door, seed: int) -> None:
        """Write what it reads; none of it holds a key of ours."""
        rows = [{"question": question, "answer": trial.right_answer(item)} for question, item in questions.items()]
        (folder / "dataset.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
        (folder / "prompt.txt").write_text(trial.template.system or "", encoding="utf-8")
        shutil.copyfile(_SIDE, folder / "anven_side.py")
        config = self._config(folder, door, seed)
        (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")

    def _config(self, folder: Path, door: Door, seed: int) -> dict[str, Any]:
        """Return what version 0.0.8 takes as its configuration."""
        settings = {"seed": seed, **self.settings} if self.strategy == "basic" else {}
        return {
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

    def _wait(self, desk: Desk, command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
        """Run it to its end, and no longer than anybody waits for it.

        Raises:
            InvalidInput: it cannot be started, or an endpoint refuses what it is asked.
            UnavailableService: it failed, or took too long.
            BudgetSpent: what it asked for goes beyond a budget.
        """
        log = folder / "log"
        code = None
        deadline = time.monotonic() + self.timeout_s
        with log.open("wb") as output, running(command, folder, environment, output) as process:
            while code is None and desk.failure is None and time.monotonic() < deadline:
                with suppress(subprocess.TimeoutExpired):
                    code = process.wait(_LOOK_SECONDS)
        said = " | ".join(last_lines(log))
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


def _questions(trial: Trial, most: int) -> dict[str, int]:
    """Return what the user message of each item says, for items with a right answer; equal ones once."""
    found: dict[str, int] = {}
    for item in range(trial.items):
        if len(found) < most and trial.right_answer(item) is not None:
            found.setdefault(fill(trial.template.user, trial.slots(item)), item)
    return found
