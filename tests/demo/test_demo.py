"""`anven demo` from the outside: real models, a real log, real verdicts, and nothing left running."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from anven_pipelines.resources.artifact_store import ArtifactStore

SERVER = b"anven_pipelines.nano.server"


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "anven_pipelines.cli", "demo", *words],
        env={**os.environ, "COLUMNS": "160"},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def demo(folder: Path, *words: str) -> tuple[int, dict[str, Any], str]:
    process = start(folder, *words, "--json")
    stdout, stderr = process.communicate(timeout=500)
    assert "Traceback" not in stderr
    return process.returncode, json.loads(stdout), stderr


def items_with_words(folder: Path, workload: str) -> int:
    """Count the items to which both models said something: an empty answer, which is one, has no first token."""
    artifacts = ArtifactStore(url=str(folder / ".anven" / "artifacts"))
    said = set[str]()
    for number, asset in enumerate(("legacy_answers", "target_answers")):
        manifest = artifacts.load_manifest(asset, workload)
        assert manifest is not None
        answers = artifacts.read(manifest)
        worded = set(answers.filter(pl.col("output").str.len_chars() > 0)["item_id"])
        said = said & worded if number else worded
    manifest = artifacts.load_manifest("golden_dataset", workload)
    assert manifest is not None
    sealed = artifacts.read(manifest).filter(pl.col("split") == "sealed", pl.col("role") == "traffic")
    return len(said & set(sealed["id"]))


def servers_of(pid: int) -> list[int]:
    """Return the model servers that a process has started and that still run."""
    children = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            parent = int((process / "stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[1])
            if parent == pid and SERVER in (process / "cmdline").read_bytes():
                children.append(int(process.name))
    return children


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.timeout(600)
def test_it_refuses_the_unchanged_prompts_and_accepts_the_adapted_ones(tmp_path: Path) -> None:
    code, told, stderr = demo(tmp_path)
    assert code == 0, stderr
    assert told["verdict"] == "GO"
    unchanged, adapted = told["verdicts"]["demo-unchanged"], told["verdicts"]["demo-adapted"]
    assert unchanged["verdict"] == "NO-GO"
    assert adapted["verdict"] == "GO"
    for verdict, fewest in ((unchanged, 240), (adapted, 600)):  # each on items of its own, 241 and 638 of the 900 calls
        assert verdict["waived"] == ["safety"]
        assert verdict["quality"]["n_measured"] == verdict["quality"]["n"] >= fewest
        assert verdict["speed"]["status"] == "met"
        assert verdict["speed"]["n_measured"] == items_with_words(tmp_path, verdict["workload"])
        assert verdict["cost"]["status"] == "met"
    assert told["traffic"]["failed"] == 0
    assert {"1", "2", "3", "4"} <= {line.split("  ")[0] for line in stderr.splitlines()}
    assert (tmp_path / ".anven" / "demo" / "adapted.yaml").is_file()


@pytest.mark.parametrize(
    ("breakage", "criterion", "verdicts", "also"),
    [
        ("regress", "quality", {"NO-GO"}, {"segments"}),
        ("slow", "ttft", {"NO-GO"}, set()),
        # What is not answered has no quality, time or cost either.
        ("errors", "missingness", {"INCONCLUSIVE", "NO-GO"}, {"quality", "segments", "ttft", "cost"}),
    ],
)
@pytest.mark.timeout(600)
def test_a_target_that_is_made_worse_is_refused_for_that(
    breakage: str, criterion: str, verdicts: set[str], also: set[str], tmp_path: Path
) -> None:
    code, told, stderr = demo(tmp_path, "--break", breakage, "--calls", "400")
    assert code == 1, stderr
    assert told["verdict"] in verdicts
    (verdict,) = told["verdicts"].values()
    statuses = {each["name"]: each["status"] for each in verdict["criteria"] if not each["waived"]}
    assert statuses.pop(criterion) != "met"
    assert {status for name, status in statuses.items() if name not in also} <= {"met"}, verdict["reasons"]


@pytest.mark.parametrize(
    ("number", "count"),
    [(signal.SIGINT, 1), (signal.SIGTERM, 2), (signal.SIGKILL, 1)],
    ids=lambda value: value.name if isinstance(value, signal.Signals) else f"{value} servers",
)
@pytest.mark.timeout(900)
def test_its_servers_end_with_it_however_it_ends(number: signal.Signals, count: int, tmp_path: Path) -> None:
    process = start(tmp_path, "--calls", "700")
    deadline = time.monotonic() + 300
    while len(servers := servers_of(process.pid)) < count or not list((tmp_path / ".anven" / "demo").glob("calls-*")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    if number != signal.SIGKILL:
        assert process.returncode == 130
        assert "interrupted; the same command starts the demo anew" in stderr
    deadline = time.monotonic() + 30
    while any(is_running(server) for server in servers):
        assert time.monotonic() < deadline, "a model server outlived the demo"
        time.sleep(0.05)
    if number == signal.SIGKILL:
        # What the killed one left does not keep the next one from its verdict.
        code, told, stderr = demo(tmp_path, "--break", "cost", "--calls", "400")
        assert (code, told["verdict"]) == (1, "NO-GO"), stderr
        (verdict,) = told["verdicts"].values()
        assert {each["name"] for each in verdict["criteria"] if each["status"] != "met" and not each["waived"]} == {
            "cost"
        }


@pytest.mark.timeout(300)
def test_two_at_once_do_not_mix(tmp_path: Path) -> None:
    first = start(tmp_path)
    deadline = time.monotonic() + 120
    while not (tmp_path / ".anven" / "demo").is_dir():
        assert first.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    second = start(tmp_path, "--json")
    stdout, stderr = second.communicate(timeout=100)
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=60)
    assert second.returncode == 2, stderr
    assert "a demo is under way in process" in json.loads(stdout)["error"]["message"]
