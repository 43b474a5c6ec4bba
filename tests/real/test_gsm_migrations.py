"""Whole migrations on recorded answers of real models, through the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import yaml

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.real, pytest.mark.timeout(600)]

GPT_35, GPT_4O = "gpt-3.5-turbo-0125", "gpt-4o-2024-05-13"
LLAMA_8B, LLAMA_70B = "Meta-Llama-3.1-8B-Instruct", "Meta-Llama-3.1-70B-Instruct"


@pytest.mark.parametrize(
    ("legacy", "target", "margin", "verdict", "means", "lost_gained"),
    [
        (GPT_35, LLAMA_70B, 0.03, "GO", (0.8036, 0.9416), (26, 208)),
        (GPT_4O, LLAMA_70B, 0.03, "GO", (0.9538, 0.9416), (45, 29)),
        (GPT_4O, LLAMA_70B, 0.02, "INCONCLUSIVE", (0.9538, 0.9416), (45, 29)),
        (GPT_4O, LLAMA_8B, 0.03, "NO-GO", (0.9538, 0.8400), (165, 15)),
    ],
)
def test_a_recorded_migration_gets_its_known_verdict(
    tmp_path: Path,
    shared_data: Path,
    legacy: str,
    target: str,
    margin: float,
    verdict: str,
    means: tuple[float, float],
    lost_gained: tuple[int, int],
) -> None:
    code, found = migrate(tmp_path, shared_data, legacy, target, margin)
    quality = found["quality"]
    assert found["verdict"] == verdict
    assert code == (0 if verdict == "GO" else 1)
    assert quality["n"] == quality["n_measured"] == 1319
    assert quality["legacy_mean"] == pytest.approx(means[0], abs=0.005)
    assert quality["target_mean"] == pytest.approx(means[1], abs=0.005)
    assert quality["lost"] == pytest.approx(lost_gained[0], abs=6)
    assert quality["gained"] == pytest.approx(lost_gained[1], abs=6)
    assert (quality["items_still_needed"] is not None) == (verdict == "INCONCLUSIVE")
    assert found["waived"] == ["ttft", "cost", "safety"]
    unmeasured = (found["speed"], found["cost"], found["safety"])
    assert [each["status"] for each in unmeasured] == ["unmeasured"] * 3
    assert found["speed"]["legacy_ttft_p95_ms"] is None
    assert found["cost"]["legacy"]["input_tokens"] is None
    assert found["cost"]["target"]["mean_usd"] is None


def test_the_same_recordings_give_the_same_bytes_in_another_place(tmp_path: Path, shared_data: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two" / "deeper"]
    for folder in folders:
        folder.mkdir(parents=True)
        migrate(folder, shared_data, GPT_35, LLAMA_70B, 0.03)
    one, two = ((folder / "verdict.json").read_bytes() for folder in folders)
    assert one == two


def migrate(folder: Path, shared_data: Path, legacy: str, target: str, margin: float) -> tuple[int, Any]:
    """Run `anven migrate --json` in a home of its own; return exit code and verdict."""
    recordings = shared_data / "zeroeval_gsm"
    file = folder / "gsm.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "workload": "gsm",
                "legacy": {"model": legacy, "logs": str(recordings / f"{legacy}.json.gz"), "format": "zeroeval"},
                "target": {
                    "model": target,
                    "engine": "recorded",
                    "answers": str(recordings / f"{target}.json.gz"),
                    "format": "zeroeval",
                },
                "grading": [{"kind": "json_field", "field": "answer", "compare": "number"}],
                "golden": {"size": "all", "holdout": 1.0},
                "sign_off": {"quality_margin": margin, "waive": ["ttft", "cost", "safety"]},
            }
        )
    )
    done = subprocess.run(
        [sys.executable, "-m", "anven_pipelines.cli", "migrate", str(file), "--json"],
        env={**os.environ, "ANVEN_HOME": str(folder / "home"), "ANVEN_MIGRATIONS": str(folder / "none")},
        cwd=folder,
        capture_output=True,
        check=False,
        timeout=500,
    )
    (folder / "verdict.json").write_bytes(done.stdout)
    assert done.returncode in {0, 1}, done.stderr.decode()
    return done.returncode, json.loads(done.stdout)
