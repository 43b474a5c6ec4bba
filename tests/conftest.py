"""What every test can rely on: its own home, nothing that phones home, and an honest word on what was left out."""

from __future__ import annotations

import importlib.util
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REPOSITORY: Final = Path(__file__).resolve().parents[1]
SHARED_DATA: Final = REPOSITORY.parent / "shared" / "data"
# Read before `own_home` clears it: the python of an environment with vLLM, as `.ci/vllm_env` prints it.
VLLM_PYTHON: Final = os.environ.get("ANVEN_VLLM_PYTHON", "")
# Likewise, with llama-prompt-ops, as `.ci/prompt_ops_env` prints it.
PROMPT_OPS_PYTHON: Final = os.environ.get("ANVEN_PROMPT_OPS_PYTHON", "")
TEST_KUBECONFIG: Final = os.environ.get("ANVEN_TEST_KUBECONFIG", "")

# Without these a library downloads a price map, reports usage, or waits for a network that is not there.
SWITCHES: Final = {
    "DO_NOT_TRACK": "true",
    "HF_HUB_OFFLINE": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAGAS_DO_NOT_TRACK": "true",
    "VLLM_NO_USAGE_STATS": "1",
}
# What a user's shell may set and a test must not see.
LEAKS: Final = ("ANVEN_", "AWS_", "DAGSTER_", "MLFLOW_TRACKING_", "OPENAI_", "OTEL_")


class Requirement(NamedTuple):
    """Something outside the repository that the tests under one marker need."""

    is_met: Callable[[], bool]
    needed: str


REQUIREMENTS: Final = {
    "real": Requirement(SHARED_DATA.is_dir, f"the folder {SHARED_DATA}"),
    "postgres": Requirement(lambda: importlib.util.find_spec("pgserver") is not None, "the package pgserver"),
    "browser": Requirement(Path("/usr/bin/chromium").exists, "Debian's package chromium"),
    "prometheus": Requirement(Path("/usr/bin/prometheus").exists, "Debian's package prometheus"),
    "cluster": Requirement(
        lambda: bool(TEST_KUBECONFIG) and Path(TEST_KUBECONFIG).is_file(),
        "the variable ANVEN_TEST_KUBECONFIG, for a cluster with GPUs to count that runs this machine's files",
    ),
    "vllm": Requirement(
        lambda: bool(VLLM_PYTHON) and Path(VLLM_PYTHON).is_file(),
        "the variable ANVEN_VLLM_PYTHON; .ci/vllm_env builds the environment and prints its value",
    ),
    "prompt_ops": Requirement(
        lambda: bool(PROMPT_OPS_PYTHON) and Path(PROMPT_OPS_PYTHON).is_file(),
        "the variable ANVEN_PROMPT_OPS_PYTHON; .ci/prompt_ops_env builds the environment and prints its value",
    ),
}


def pytest_configure(config: pytest.Config) -> None:
    """Fail at once when `ANVEN_REQUIRE` names something that is not there."""
    required = [name for name in os.environ.get("ANVEN_REQUIRE", "").split(",") if name]
    if unknown := [name for name in required if name not in REQUIREMENTS]:
        message = f"ANVEN_REQUIRE names {', '.join(unknown)}; known are {', '.join(REQUIREMENTS)}"
        raise pytest.UsageError(message)
    if missing := [REQUIREMENTS[name].needed for name in required if not REQUIREMENTS[name].is_met()]:
        message = f"ANVEN_REQUIRE={','.join(required)} needs {' and '.join(missing)}"
        raise pytest.UsageError(message)
    os.environ.update(SWITCHES)
    settings.register_profile("anven", deadline=None)  # a busy machine is no failure
    settings.load_profile("anven")
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        # A shell that starts a command in the background has it ignore SIGINT, and Dagster then gives SIGTERM the same
        # handler: no test could interrupt anything.
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what this machine cannot run; `pytest_terminal_summary` says so."""
    unmet = unmet_requirements()
    left_out = [item for item in items if any(item.get_closest_marker(name) for name in unmet)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name every marker that was left out, and why."""
    for name, needed in unmet_requirements().items():
        terminalreporter.write_line(f"Left out: tests marked {name}, which need {needed}.", yellow=True)


def unmet_requirements() -> dict[str, str]:
    """Return marker to what it needs, for what this machine lacks."""
    return {name: needed for name, (is_met, needed) in REQUIREMENTS.items() if not is_met()}


@pytest.fixture(scope="session")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make MLflow's database once: its migrations take 3 s, a copy of the file takes none."""
    from anven_pipelines.resources.mlflow_tracking import MlflowTracking  # noqa: PLC0415 - not at each collection

    folder = tmp_path_factory.mktemp("mlflow")
    tracking = MlflowTracking(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}", outbox=str(folder / "outbox"))
    assert tracking.problem() is None
    return folder / "mlflow.db"


@pytest.fixture(scope="session", autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Give the session an empty home and none of the user's settings."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ:
            if name.startswith(LEAKS):
                patch.delenv(name)
        patch.setenv("HOME", str(home))
        for name in ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"):
            patch.delenv(name, raising=False)
        yield home


@pytest.fixture(autouse=True)
def own_settings() -> Iterator[None]:
    """Take back what a test leaves in the environment: one DAGSTER_HOME, and the next test's runs are elsewhere."""
    before = {name: value for name, value in os.environ.items() if name.startswith(LEAKS)}
    yield
    for name in [name for name in os.environ if name.startswith(LEAKS) and name not in before]:
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Return the folder with the recorded data of others; only tests marked `real` may use it."""
    return SHARED_DATA


@pytest.fixture(scope="session")
def vllm_python() -> str:
    """Return the python of the environment with vLLM; only tests marked `vllm` may use it."""
    return VLLM_PYTHON


@pytest.fixture(scope="session")
def prompt_ops_python() -> str:
    """Return the python of the environment with llama-prompt-ops; only tests marked `prompt_ops` may use it."""
    return PROMPT_OPS_PYTHON
