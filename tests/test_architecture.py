"""The import contracts of pyproject.toml hold, and each of them notices its violation."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


class Verdict(NamedTuple):
    """What import-linter said of a source tree."""

    kept: set[str]
    broken: set[str]
    output: str


def test_the_package_keeps_every_contract() -> None:
    verdict = lint_imports(REPOSITORY)

    assert not verdict.broken, verdict.output
    assert verdict.kept, verdict.output


@pytest.mark.parametrize(
    ("module", "violation", "contract"),
    [
        ("assets/sign_off.py", "import anven_pipelines.definitions", "Imports point downwards"),
        ("resources/artifact_store.py", "import anven_pipelines.assets", "Imports point downwards"),
        ("domain/golden.py", "import anven_pipelines.ingest", "Imports point downwards"),
        ("stats/interval.py", "import anven_pipelines.domain.table", "Imports point downwards"),
        ("unforeseen.py", "", "Imports point downwards"),
        (
            "spec.py",
            "import anven_pipelines.domain.golden",
            "The migration file's models rest on the base of the domain only",
        ),
        ("domain/errors.py", "import anven_pipelines.spec", "The base of the domain rests on nothing above it"),
        ("domain/golden.py", "import dagster", "The core knows no framework, does no I/O and reads no clock"),
        ("domain/golden.py", "import time", "The core knows no framework, does no I/O and reads no clock"),
        ("spec.py", "def late():\n    import fsspec", "The core knows no framework, does no I/O and reads no clock"),
        ("stats/interval.py", "import polars", "The statistics know nothing of language models"),
        ("assets/evaluation.py", "import ragas", "Only resources.judge imports ragas"),
        ("assets/evaluation.py", "import mlflow", "Only the resources that wrap MLflow import it"),
        ("cli.py", "import litellm", "Only the resources that wrap LiteLLM and the plugin that it loads import it"),
        ("gateway/service.py", "import opentelemetry", "Only gateway.spans imports OpenTelemetry"),
        (
            "gateway/service.py",
            "import presidio_analyzer",
            "Only resources.redactor_kinds imports presidio_analyzer",
        ),
        ("assets/evaluation.py", "import gepa", "Only resources.gepa_strategy imports gepa"),
        (
            "resources/prompt_ops.py",
            "import anven_pipelines.resources.prompt_ops_side",
            "Only resources.prompt_ops_side imports what stands in the environment of llama-prompt-ops",
        ),
        ("resources/judge.py", "import kubernetes", "Only resources.kubernetes_api imports kubernetes"),
        ("gateway/service.py", "import dagster", "The gateway runs without an orchestrator"),
        ("worker/generate.py", "import dagster", "The GPU image carries no orchestrator"),
    ],
)
def test_a_deliberate_violation_is_caught(module: str, violation: str, contract: str, tmp_path: Path) -> None:
    tree = copy_of_the_package(tmp_path)
    insert(violation, tree / "anven_pipelines" / module)

    verdict = lint_imports(tree)

    assert contract in verdict.broken, verdict.output


def copy_of_the_package(folder: Path) -> Path:
    """Copy what import-linter reads."""
    shutil.copy(REPOSITORY / "pyproject.toml", folder)
    shutil.copytree(
        REPOSITORY / "anven_pipelines",
        folder / "anven_pipelines",
        ignore=lambda parent, names: [
            name for name in names if not name.endswith(".py") and not (Path(parent) / name).is_dir()
        ],
    )
    return folder


def insert(violation: str, module: Path) -> None:
    """Add the line at the end of the module; make the module and its package where the tree lacks them."""
    if not module.parent.exists():
        module.parent.mkdir()
        (module.parent / "__init__.py").touch()
    with module.open("a", encoding="utf-8") as file:
        file.write(f"\n{violation}\n")


def lint_imports(tree: Path) -> Verdict:
    """Run import-linter on the package in the tree, as `lint-imports` does."""
    program = f"import sys; sys.path.insert(0, {str(tree)!r}); import importlinter.cli as c; c.lint_imports_command()"
    done = subprocess.run(
        [sys.executable, "-c", program, "--no-cache"], cwd=tree, capture_output=True, text=True, check=False, timeout=60
    )
    output = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout) + done.stderr
    verdict = Verdict(
        kept=set(re.findall(r"^(.+) KEPT$", output, re.MULTILINE)),
        broken=set(re.findall(r"^(.+) BROKEN$", output, re.MULTILINE)),
        output=output,
    )
    assert verdict.kept or verdict.broken, output
    return verdict
