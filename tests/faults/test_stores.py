"""Killed in the middle of writing: only whole artifacts are left, and a log that verifies."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from anven_pipelines.resources.artifact_store import ArtifactStore
from anven_pipelines.resources.state_store import StateStore
from tests.resources.artifact_cases import CALLS

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.timeout(300)  # one import of dagster: 1 s, half a minute on a busy machine

# Forks after the imports, so that each process starts in milliseconds. Only the children use Polars, whose
# threads do not survive a fork. A child says on its own pipe what it was told is durable.
PREAMBLE = """
import os, random, signal, sys, time
from datetime import UTC, datetime
import polars as pl
from anven_pipelines.resources.artifact_store import ArtifactStore
from anven_pipelines.resources.state_store import StateStore
from tests.resources.artifact_cases import CALLS, calls

folder = sys.argv[1]
artifacts = ArtifactStore(url=f"{folder}/artifacts")
state = StateStore(url=f"sqlite:///{folder}/state.db")

def acknowledge(what):
    os.write(1, f"{what}\\n".encode())

def work(name):
    artifacts.checkpoint(CALLS, "key").append(calls(name))
    acknowledge(f"checkpoint {name}")
    artifacts.save_manifest("calls", None, artifacts.publish(CALLS, [calls(name), calls(f"{name} again")]))
    acknowledge(f"manifest {name}")
    state.append(stream="s", kind="k", key=name, payload={"name": name}, now=datetime.now(UTC))
    acknowledge(f"event {name}")

def fork(task):
    child = os.fork()
    if child == 0:
        task()
        os._exit(0)
    return child
"""

# Each life ends a moment after it has shown progress, however slow the machine is.
AT_ANY_TIME = """
def go_on(life, progress):
    os.dup2(progress, 1)
    for n in range(100_000):
        work(f"{life}.{n}")

patience = random.Random(7)
for life in range(12):
    told, telling = os.pipe()
    child = fork(lambda: go_on(life, telling))
    os.close(telling)
    text = b""
    while b"event" not in text:
        text += os.read(told, 1)
    os.write(1, text)
    time.sleep(patience.uniform(0.0, 0.1))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while text := os.read(told, 65536):
        os.write(1, text)
    os.close(told)
"""

# Python announces each of these to audit hooks before it happens: between any two of them the process dies once.
AT_EVERY_STEP = """
STEPS = {"open", "os.rename", "os.mkdir", "os.remove", "sqlite3.connect"}

def die_before(step):
    left = step
    def hook(event, args):
        nonlocal left
        if event in STEPS:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    work(f"step {step}")

for step in range(1, 1000):
    _, status = os.waitpid(fork(lambda: die_before(step)), 0)
    if os.WIFEXITED(status):
        acknowledge(f"survived {step}")
        break
"""


def run(script: str, folder: Path) -> list[tuple[str, str]]:
    # Python 3.12 warns of any fork beside threads; libraries start theirs at import, and the children use none of them.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", PREAMBLE + script, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240)
    assert done.stderr == ""
    return [(what, name) for what, _, name in (line.partition(" ") for line in done.stdout.splitlines())]


def assert_only_whole_things(folder: Path, acknowledged: list[tuple[str, str]]) -> None:
    artifacts = ArtifactStore(url=str(folder / "artifacts"))
    parts = artifacts.folder.names("parts/calls")
    for name in parts:
        data = artifacts.folder.read(f"parts/calls/{name}")
        assert data is not None
        assert hashlib.sha256(data).hexdigest() == name.removesuffix(".parquet")

    saved = [name.removesuffix(".json") for name in artifacts.folder.names("manifests/calls/~all")]
    manifests = [artifacts.load_manifest("calls", None, digest=digest) for digest in saved if digest != "current"]
    current = artifacts.load_manifest("calls", None)
    assert current in manifests
    published = {artifacts.read(manifest)["id"][0] for manifest in manifests if manifest is not None}
    assert {name for what, name in acknowledged if what == "manifest"} <= published

    kept = Counter(artifacts.checkpoint(CALLS, "key").load()["id"])
    assert {name for what, name in acknowledged if what == "checkpoint"} <= kept.keys()
    assert set(kept.values()) == {1}
    assert not list(folder.rglob("*.corrupt"))

    state = StateStore(url=f"sqlite:///{folder}/state.db")
    events = Counter(event.key for event in state.events())
    assert (state.verify().ok, state.verify().events) == (True, events.total())
    assert {name for what, name in acknowledged if what == "event"} <= events.keys()
    assert set(events.values()) == {1}


def test_killed_at_any_time(tmp_path: Path) -> None:
    acknowledged = run(AT_ANY_TIME, tmp_path)

    assert len({name.split(".")[0] for _, name in acknowledged}) == 12
    assert_only_whole_things(tmp_path, acknowledged)


def test_killed_before_every_step(tmp_path: Path) -> None:
    acknowledged = run(AT_EVERY_STEP, tmp_path)

    ((what, steps),) = acknowledged[-1:]
    assert what == "survived"
    assert int(steps) > 20
    assert list(tmp_path.rglob("*.tmp"))  # it did die between writing and renaming
    assert_only_whole_things(tmp_path, acknowledged)
