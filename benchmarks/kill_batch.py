"""Kills the worker and the Dagster step at random moments; counts what was lost, doubled or decided otherwise.

    python benchmarks/kill_batch.py [--kills N] [--items N] [--within-s S] [--seed N] [--quick] [--json]

One `anven migrate` with `engine: nano` runs undisturbed. Then others of the same log and file run in homes of their own
and get kill -9: two workers of a step, then the process that runs the steps, each at a moment drawn evenly from the
first S seconds after a worker was started. A killed migration is started again, at once, until its verdict stands. The
next home follows, until all kills are dealt. Ends with 1 where anything was lost or differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import polars as pl
import yaml

from anven_pipelines.nano.prompts import anven_messages
from anven_pipelines.nano.tasks import generate
from anven_pipelines.resources.artifact_store import ArtifactStore

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

WORKLOAD: Final = "killed"
MIGRATION: Final = {
    "workload": WORKLOAD,
    "legacy": {"model": "legacy-model", "logs": "log-*.jsonl"},
    "target": {"engine": "nano", "model": "anven-nano"},
    "grading": [{"kind": "exact"}],
    "golden": {"size": "all", "holdout": 1.0, "near_duplicates": "keep"},
    "sign_off": {"quality_margin": 0.3, "waive": ["ttft", "cost", "safety"]},
}
MEASURED: Final = ("ttft_ms", "latency_ms", "attempts")  # these differ from run to run
WORKERS_A_STEP: Final = 2  # a step gives up when its third worker dies too
LOOK_S: Final = 0.1
DEADLINE_S: Final = 600.0


class Outcome(NamedTuple):
    """What a migration came to: its verdict's JSON, its answers, and the rows of ANSWERS that became durable."""

    verdict: str
    answers: pl.DataFrame
    rows_written: int


@dataclass
class Tally:
    """What the kills did."""

    kills: dict[str, int] = field(default_factory=lambda: {"worker": 0, "step": 0})
    migrations: int = 0
    lost: int = 0
    doubled: int = 0
    other_answers: int = 0
    other_verdicts: int = 0
    written_twice: int = 0
    workers_left: int = 0

    @property
    def dealt(self) -> int:
        """Kills so far."""
        return sum(self.kills.values())

    @property
    def victim(self) -> str:
        """Whose turn it is."""
        return "step" if self.kills["worker"] >= WORKERS_A_STEP * (self.kills["step"] + 1) else "worker"

    @property
    def harmless(self) -> bool:
        """Say whether nothing came of the kills but time."""
        return not (self.lost or self.doubled or self.other_answers or self.other_verdicts or self.workers_left)

    def add(self, found: Outcome, undisturbed: Outcome) -> None:
        """Compare a migration with the undisturbed one."""
        expected = undisturbed.answers.drop(MEASURED).sort("item_id")
        ids = found.answers["item_id"]
        answered = found.answers.filter(pl.col("status") == "answered")["item_id"]
        self.migrations += 1
        self.lost += expected.height - answered.n_unique()
        self.doubled += ids.len() - ids.n_unique()
        same = found.answers.drop(MEASURED).join(expected, on=expected.columns, how="semi", nulls_equal=True)
        self.other_answers += expected.height - same.height
        self.other_verdicts += found.verdict != undisturbed.verdict
        self.written_twice += found.rows_written - expected.height

    def told(self) -> dict[str, Any]:
        """Return the figures as JSON holds them."""
        return {**vars(self), "harmless": self.harmless}


def main() -> None:
    """Kill, count and print."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--kills", type=int, default=100)
    options.add_argument("--items", type=int, default=4_000, help="golden items of each migration")
    options.add_argument("--within-s", type=float, default=8.0, help="moments lie so soon after a worker's start")
    options.add_argument("--seed", type=int, default=5, help="of the moments")
    options.add_argument("--quick", action="store_true", help="3 kills, 300 items")
    options.add_argument("--json", action="store_true", help="print one JSON object")
    chosen = options.parse_args()
    kills, items = (3, 300) if chosen.quick else (chosen.kills, chosen.items)
    with tempfile.TemporaryDirectory(prefix="anven-kills-") as scratch:
        chance = random.Random(chosen.seed)  # noqa: S311 - moments, no secrets
        tally = measure(Path(scratch), kills, items, lambda: chance.uniform(0.0, chosen.within_s))
    if chosen.json:
        print(json.dumps(tally.told()))
    else:
        print("\n".join(f"{name.replace('_', ' ')}: {found}" for name, found in tally.told().items()))
    sys.exit(0 if tally.harmless else 1)


def measure(scratch: Path, kills: int, items: int, moment_s: Callable[[], float]) -> Tally:
    """Deal the kills and return what they did; `moment_s` draws each one's seconds after its worker was started."""
    quiet = Place.made(scratch / "undisturbed", items)
    with quiet.started() as process:
        quiet.require_verdict(process)
    undisturbed, tally = quiet.outcome(), Tally()
    while tally.dealt < kills:
        place = Place.made(scratch / f"home-{tally.migrations}", items)
        while not place.disturbed(tally, kills, moment_s):
            pass
        tally.add(place.outcome(), undisturbed)
        print(f"{tally.dealt} of {kills} kills: {tally.told()}", file=sys.stderr, flush=True)
    tally.workers_left = sum(1 for pid in processes() if str(scratch) in command_line(pid))
    return tally


class Place(NamedTuple):
    """A folder with a log, a migration file and a home."""

    folder: Path

    @classmethod
    def made(cls, folder: Path, items: int) -> Place:
        """Write what a migration needs; the same for the same number of items."""
        folder.mkdir()
        calls = [
            {
                "request_id": f"call-{at:05d}",
                "ts": f"2026-10-05T{at // 3600 % 24:02d}:{at // 60 % 60:02d}:{at % 60:02d}Z",
                "application": "helpdesk",
                "endpoint": "/v1/chat/completions",
                "model": "legacy-model",
                "messages": anven_messages(item),
                "params": {"temperature": 0},
                "output": item.answer,
                "status": "ok",
                "ground_truth": item.answer,
            }
            for at, item in enumerate(generate("golden", items, seed=6))
        ]
        (folder / "log-2026-10-05.jsonl").write_text("".join(json.dumps(call) + "\n" for call in calls))
        (folder / "m.yaml").write_text(yaml.safe_dump(MIGRATION))
        return cls(folder)

    def started(self) -> subprocess.Popen[bytes]:
        """Start the migration; its worker is a child of the process that runs the steps."""
        environment = {
            **os.environ,
            "ANVEN_HOME": str(self.folder / "home"),
            "ANVEN_MIGRATIONS": str(self.folder / "none"),
        }
        command = [sys.executable, "-m", "anven_pipelines.cli", "migrate", str(self.folder / "m.yaml"), "--json"]
        with (self.folder / "verdict.json").open("wb") as stdout, (self.folder / "said").open("wb") as stderr:
            return subprocess.Popen(command, env=environment, stdout=stdout, stderr=stderr)

    def disturbed(self, tally: Tally, kills: int, moment_s: Callable[[], float]) -> bool:
        """Run the migration with kills until it ends; say whether it ended by itself, with a verdict."""
        seen: set[int] = set()
        with self.started() as process:
            while tally.dealt < kills and (worker := next_worker(process, seen)) is not None:
                seen.add(worker)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(moment_s())
                    break
                if tally.victim == "step":
                    process.kill()
                    tally.kills["step"] += 1
                    print(f"{tally.dealt} of {kills} kills", file=sys.stderr, flush=True)
                    return False
                if alive(worker):  # else it was done before its moment came
                    os.kill(worker, signal.SIGKILL)
                    tally.kills["worker"] += 1
            self.require_verdict(process)
        return True

    def require_verdict(self, process: subprocess.Popen[bytes]) -> None:
        """Wait until the migration has ended with a verdict."""
        if process.wait(DEADLINE_S) not in {0, 1}:
            sys.exit(f"the migration ended with {process.returncode}: {(self.folder / 'said').read_text()[-3000:]}")

    def outcome(self) -> Outcome:
        """Read what the migration came to."""
        store = ArtifactStore(url=str(self.folder / "home" / "artifacts"))
        manifest = store.load_manifest("target_answers", WORKLOAD)
        if manifest is None:
            sys.exit("the migration left no target_answers")
        written = pl.scan_parquet(self.folder / "home" / "artifacts" / "checkpoints" / "*" / "*.parquet")
        return Outcome(
            verdict=(self.folder / "verdict.json").read_text(),
            answers=store.read(manifest),
            rows_written=written.select(pl.len()).collect().item(),
        )


def next_worker(process: subprocess.Popen[bytes], seen: set[int]) -> int | None:
    """Wait for a worker that was not seen before; None when the migration ends without one."""
    while process.poll() is None:
        for pid in processes():
            if pid not in seen and parent(pid) == process.pid and alive(pid):
                return pid
        time.sleep(LOOK_S)
    return None


def processes() -> Iterator[int]:
    """Go through the processes of this machine."""
    return (int(each.name) for each in Path("/proc").glob("[0-9]*"))


def parent(pid: int) -> int | None:
    """Return who started a process; None when it is gone."""
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
    return None


def alive(worker: int) -> bool:
    """Say whether a worker runs; a dead one has no command line."""
    return "anven_pipelines.worker" in command_line(worker)


def command_line(pid: int) -> str:
    """Return the words that a process was started with; none when it is gone."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


if __name__ == "__main__":
    main()
