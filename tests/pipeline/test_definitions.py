"""The code location loads anywhere, fast and without asking anything."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml

from anven_pipelines.definitions import definitions
from anven_pipelines.resources.deployments import (
    DAGSTER_SETTINGS,
    adopt_home,
    deployment_name,
    missing_settings,
    resources,
)

SHARED_SETTINGS = Path(__file__).parents[2] / "k8s" / "dagster.yaml"
HEAVY = ("litellm", "ragas", "mlflow", "kubernetes", "matplotlib", "presidio_analyzer", "vllm", "torch")
PROBE = f"""
import json, sys
import dagster as dg
from anven_pipelines.definitions import definitions
loaded = definitions()
dg.Definitions.validate_loadable(loaded)
assets = sorted(key.to_user_string() for key in loaded.resolve_all_asset_keys())
keys = sorted(loaded.resources)
print(json.dumps({{"heavy": [each for each in {HEAVY} if each in sys.modules], "assets": assets, "resources": keys}}))
"""


def load(deployment: str, folder: Path) -> Any:
    """Load the definitions in a fresh interpreter that has nothing set but the deployment's name."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-c", PROBE],
        env={**kept, "ANVEN_DEPLOYMENT": deployment},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("deployment", ["local", "staging", "production"])
def test_definitions_load_in_a_fresh_interpreter_without_settings_and_without_what_is_slow(
    deployment: str, tmp_path: Path
) -> None:
    loaded = load(deployment, tmp_path)
    assert loaded["heavy"] == []
    assert loaded["assets"] == [
        "adapted_prompt",
        "cost_model",
        "golden_dataset",
        "legacy_answers",
        "load_benchmark",
        "power_plan",
        "production_regression",
        "prompt_baseline",
        "rejected_lines",
        "request_log",
        "rollout_drill",
        "rollout_status",
        "scorecard",
        "scores",
        "sign_off",
        "target_answers",
        "traffic_drift",
        "workload_inventory",
    ]
    assert list(tmp_path.iterdir()) == []


def test_every_deployment_has_the_same_resource_keys() -> None:
    keys = [set(resources(name, {})) for name in ("local", "staging", "production")]
    assert keys[0] == keys[1] == keys[2]


def test_a_shared_deployment_says_which_settings_it_lacks() -> None:
    environment = {"ANVEN_DEPLOYMENT": "production", "ANVEN_STATE_URL": "postgresql+psycopg2://db/anven"}
    assert missing_settings(environment) == [
        "ANVEN_ARTIFACTS_URL",
        "MLFLOW_TRACKING_URI",
        "DAGSTER_HOME with a dagster.yaml (k8s/dagster.yaml is one)",
    ]
    assert missing_settings({}) == []


def test_an_unknown_deployment_is_refused_by_name() -> None:
    with pytest.raises(Exception, match="ANVEN_DEPLOYMENT is 'prod'; one of local, staging, production is needed"):
        deployment_name({"ANVEN_DEPLOYMENT": "prod"})


@pytest.mark.parametrize("settings", [DAGSTER_SETTINGS, SHARED_SETTINGS.read_text()], ids=["local", "shared"])
def test_dagster_evaluates_sensors_side_by_side(settings: str, tmp_path: Path) -> None:
    """The instance is opened on the settings, but for the storage, which is a Postgres server's."""
    kept = {name: each for name, each in yaml.safe_load(settings).items() if name != "storage"}
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(kept))
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert instance.get_settings("sensors") == {"use_threads": True, "num_workers": 4}


def test_variables_that_are_empty_count_as_unset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("ANVEN_HOME", "DAGSTER_HOME", "ANVEN_MIGRATIONS"):
        monkeypatch.setenv(name, "")

    assert adopt_home() == tmp_path / ".anven"
    assert [path.name for path in tmp_path.iterdir()] == [".anven"]
    assert os.environ["DAGSTER_HOME"] == str(tmp_path / ".anven" / "dagster")


def test_everything_that_the_ui_lists_as_automation_says_what_it_does() -> None:
    repository = definitions().get_repository_def()
    told = {each.name: each.description for each in repository.sensor_defs}
    told |= {each.name: each.description for each in repository.schedule_defs}

    assert {"rollout", "rollout_notices", "rollout_tracking", "daily_drill"} <= set(told)
    assert [name for name, description in told.items() if not description] == []
