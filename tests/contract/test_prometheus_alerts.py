"""The alerts that k8s/ ships fire on the gateway's metrics, as Prometheus' own tool finds."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from anven_pipelines.gateway.metrics import HELP

pytestmark = pytest.mark.prometheus

ALERTS = Path(__file__).parents[2] / "k8s" / "prometheus-alerts.yaml"


def promtool(*arguments: str | Path) -> str:
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_each_alert_asks_for_metrics_that_the_gateway_tells() -> None:
    promtool("check", "rules", ALERTS)
    rules = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
    asked = {name for rule in rules for name in re.findall(r"anven_\w+", rule["expr"])}
    assert asked
    assert asked <= set(HELP)


def test_a_breaker_lost_events_and_a_silent_worker_are_told_and_a_sound_gateway_is_not(tmp_path: Path) -> None:
    of_bad = '{worker="w1", workload="support"}'
    of_good = '{worker="w2", workload="billing"}'
    series = {
        f"anven_breaker_open{of_bad}": "0x4 1x20",
        f"anven_breaker_open{of_good}": "0x24",
        'anven_events_dropped_total{worker="w1"}': "0x4 7x20",
        'anven_events_dropped_total{worker="w2"}': "7x24",
        f"anven_worker_up{of_bad}": "1x24",
        f"anven_worker_up{of_good}": "1x24",
        f"anven_worker_written_seconds{of_bad}": "0+15x4 60x20",  # told until the first minute was over
        f"anven_worker_written_seconds{of_good}": "0+15x24",
    }
    told = {
        "AnvenBreakerOpen": {"severity": "page", "workload": "support"},
        "AnvenEventsDropped": {"severity": "ticket", "worker": "w1"},
        "AnvenWorkerSilent": {"severity": "ticket", "worker": "w1"},
    }
    expected = [
        {"eval_time": at, "alertname": name, "exp_alerts": [{"exp_labels": labels}] if at == "5m" else []}
        for name, labels in told.items()
        for at in ("45s", "5m")
    ]
    rules = yaml.safe_load(ALERTS.read_text())
    for rule in rules["groups"][0]["rules"]:
        del rule["annotations"]  # promtool compares them word for word
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules))
    tested = {
        "interval": "15s",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "alert_rule_test": expected,
    }
    file = tmp_path / "test.yaml"
    file.write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "evaluation_interval": "15s", "tests": [tested]}))
    promtool("test", "rules", file)
