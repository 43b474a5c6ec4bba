"""The command line as a person and a script meet it."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.model_places import COMMIT, digest_of_parts, put_in_hub, put_in_layout, put_model

if TYPE_CHECKING:
    from pathlib import Path


SEARCHED = (
    "workload: x\nlegacy: {model: m, logs: m.yaml}\ntarget: {engine: endpoint, model: m, url: 'http://127.0.0.1:9/v1'}\n"
    "grading: [{kind: exact}]\ngolden: {holdout: 0.5}\n"
)


def anven(*words: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder of its own."""
    return subprocess.run(
        [sys.executable, "-m", "anven_pipelines.cli", *words],
        env={**os.environ, "COLUMNS": "200", **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["migrate"],
        ["prompt"],
        ["load"],
        ["dev"],
        ["gateway"],
        ["drill"],
        ["rollout"],
        ["doctor"],
        ["weights"],
        ["fill-mlflow"],
        ["golden", "export"],
        ["golden", "import"],
    ],
)
def test_every_command_explains_itself_without_making_anything(command: list[str], tmp_path: Path) -> None:
    done = anven(*command, "--help", folder=tmp_path)
    assert done.returncode == 0
    assert "Usage: anven" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "m.yaml: the file is not readable"),
        ("", "m.yaml: the file is empty"),
        ("workload: x\n", "m.yaml: legacy is missing; a value is needed"),
        (
            (
                "workload: x\nlegacy: {model: m, logs: none.jsonl}\ntarget: {engine: recorded, model: m, answers: a}\n"
                "grading: [{kind: exact}]\n"
            ),
            "none.jsonl: does not exist",
        ),
        (
            (
                "workload: x\nlegacy: {model: m, logs: m.yaml}\n"
                "target: {engine: recorded, model: m, answers: answers.jsonl}\ngrading: [{kind: exact}]\n"
            ),
            "answers.jsonl: does not exist",
        ),
        (
            (
                "workload: x\nlegacy: {model: m, logs: m.yaml}\n"
                "target: {engine: endpoint, model: m, url: 'http://127.0.0.1:9/v1', api_key_env: NO_SUCH_KEY}\n"
                "grading: [{kind: exact}]\n"
            ),
            "export NO_SUCH_KEY=...",
        ),
        (
            (
                f"{SEARCHED}prompt: {{mode: full, strategies: [racing, gepa], "
                "reflection: {model: large, url: 'http://127.0.0.1:9/v1', api_key_env: NO_SUCH_KEY}}\n"
            ),
            "the key of the reflection model 'large' is needed in it: export NO_SUCH_KEY=...",
        ),
        (
            (
                f"{SEARCHED}prompt: {{mode: full, strategies: [racing, prompt_ops], "
                "reflection: {model: large, url: 'http://127.0.0.1:9/v1'}}\n"
            ),
            "ANVEN_PROMPT_OPS_PYTHON is not set",
        ),
    ],
)
def test_bad_input_exits_with_two_and_one_clear_line(text: str | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "m.yaml"
    if text is not None:
        file.write_text(text)
    done = anven("migrate", str(file), "--json", folder=tmp_path, ANVEN_PROMPT_OPS_PYTHON="")
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert message in json.loads(done.stdout)["error"]["message"]


@pytest.mark.parametrize(
    ("log", "message"),
    [
        ("", "legacy.logs ['log.jsonl'] has no calls in request_log; calls that can be read are needed"),
        ("\n{\n", "mend those that request_log's checks name"),
        (
            json.dumps(
                {
                    "id": "a",
                    "startTime": "2026-11-01T00:00:00Z",
                    "model": "other",
                    "messages": [{"role": "user", "content": "Capital of France?"}],
                    "response": {"choices": [{"message": {"content": "Paris"}}]},
                }
            ),
            "none of 1 logged calls qualifies for the golden dataset (other model 1)",
        ),
    ],
    ids=["empty", "no line that can be read", "no call of the model"],
)
def test_a_log_without_a_usable_call_is_bad_input_and_one_error(log: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(log)
    (tmp_path / "answers.jsonl").touch()
    (tmp_path / "m.yaml").write_text(
        "workload: x\nlegacy: {model: m, logs: log.jsonl}\n"
        "target: {engine: recorded, model: m, answers: answers.jsonl}\ngrading: [{kind: exact}]\n"
    )
    done = anven("migrate", "m.yaml", "--json", folder=tmp_path)
    assert done.returncode == 2, done.stderr
    error = json.loads(done.stdout)["error"]
    assert error["kind"] == "InvalidInput"
    assert message in error["message"]
    assert [line for line in done.stderr.splitlines() if line.startswith("error")] == [f"error {error['message']}"]


@pytest.mark.parametrize("words", [["migrate"], ["migrate", "a", "b"], ["doctor", "--what"], ["fly"]], ids=" ".join)
def test_a_command_that_is_not_understood_is_one_json_object_too(words: list[str], tmp_path: Path) -> None:
    done = anven(*words, "--json", folder=tmp_path)
    assert done.returncode == 2
    error = json.loads(done.stdout)["error"]
    assert error["kind"] == "InvalidInput"
    assert error["message"]


@pytest.mark.timeout(300)
def test_what_is_left_out_is_told_and_what_was_changed_behind_its_back_is_found(tmp_path: Path) -> None:
    calls = [
        {
            "request_id": str(at),
            "model": "m",
            "messages": [{"role": "user", "content": f"{at}?"}],
            "output": str(at),
            "ground_truth": str(at),
        }
        for at in range(500)
    ]
    lines = [*map(json.dumps, calls), "{not json", json.dumps({**calls[0], "output": "something else"})]
    (tmp_path / "calls.jsonl").write_text("\n".join(lines))
    file = tmp_path / "m.yaml"
    file.write_text(
        "workload: x\nlegacy: {model: m, logs: calls.jsonl}\ngrading: [{kind: exact}]\n"
        "target: {engine: recorded, model: m, answers: calls.jsonl}\n"
    )
    done = anven("migrate", str(file), "--json", folder=tmp_path)
    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout)["verdict"] == "INCONCLUSIVE"
    assert "1 of 502 lines are no logged call" in done.stderr
    assert "calls.jsonl, line 501" in done.stderr
    assert "2 logged calls are left out: calls of one request id say different things" in done.stderr
    assert "scorecard: done" in done.stderr

    for part in (tmp_path / ".anven" / "artifacts" / "parts" / "scores").iterdir():
        part.write_bytes(b"PAR1")
    report = json.loads(anven("doctor", "--json", folder=tmp_path, ANVEN_MIGRATIONS=".").stdout)
    (damaged,) = [check for check in report["checks"] if check["name"] == "published tables"]
    assert damaged["status"] == "problem"
    assert "parts/scores" in damaged["found"]

    with sqlite3.connect(tmp_path / ".anven" / "state.db") as connection:
        connection.execute("UPDATE events SET payload = replace(payload, 'INCONCLUSIVE', 'GO')")
    done = anven("migrate", str(file), "--json", folder=tmp_path)
    assert done.returncode == 3
    assert json.loads(done.stdout)["error"]["kind"] == "TamperedLog"


def test_golden_export_and_import_are_one_json_object_and_exit_with_two_on_bad_input(tmp_path: Path) -> None:
    done = anven("golden", "export", "support", "--to", "x.jsonl", "--json", folder=tmp_path)
    assert done.returncode == 3
    assert "has no golden dataset" in json.loads(done.stdout)["error"]["message"]
    done = anven("golden", "export", "support", "--as", "mlflow", "--to", "x.jsonl", "--json", folder=tmp_path)
    assert done.returncode == 2
    assert "mlflow has a place of its own" in json.loads(done.stdout)["error"]["message"]
    done = anven("golden", "import", "x.jsonl", "--workload", "support", "--json", folder=tmp_path)
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["kind"] == "UnknownWorkload"


def test_doctor_finds_everything_in_order_in_an_empty_folder_and_says_what_to_do_next(tmp_path: Path) -> None:
    done = anven("doctor", "--json", folder=tmp_path)
    report = json.loads(done.stdout)
    assert done.returncode == 0, done.stdout
    assert report["ok"]
    found = {check["name"]: check["status"] for check in report["checks"]}
    assert found["artifact store"] == found["state store"] == found["mlflow"] == "ok"
    assert found["migrations"] == "warning"


def test_doctor_names_each_problem_with_its_remedy(tmp_path: Path) -> None:
    folder = tmp_path / "migrations"
    folder.mkdir()
    (folder / "broken.yaml").write_text("workload: [")
    (folder / "gone.yaml").write_text(
        "workload: gone\nlegacy: {model: m, logs: ../none.jsonl}\n"
        "target: {engine: endpoint, model: m, url: 'http://127.0.0.1:9/v1', api_key_env: NO_SUCH_KEY}\n"
        "grading: [{kind: exact}]\n"
    )
    done = anven("doctor", "--json", folder=tmp_path)
    assert done.returncode == 1
    problems = {check["name"]: check for check in json.loads(done.stdout)["checks"] if check["status"] == "problem"}
    assert set(problems) == {"migrations", "gone: logs", "gone: key", "gone: endpoint"}
    assert all(check["remedy"] for check in problems.values())


def test_doctor_of_a_shared_deployment_lists_the_settings_it_lacks(tmp_path: Path) -> None:
    done = anven("doctor", folder=tmp_path, ANVEN_DEPLOYMENT="production")
    assert done.returncode == 1
    assert "ANVEN_ARTIFACTS_URL, ANVEN_STATE_URL, MLFLOW_TRACKING_URI" in done.stdout


def test_weights_are_named_as_in_a_migration_file(tmp_path: Path) -> None:
    model = put_model(tmp_path / "model")
    put_in_hub(tmp_path / "hub", model)
    put_in_layout(tmp_path / "layout", model)
    for words in (["model"], [f"oci://{tmp_path}/layout"], ["hf://anven/ANVEN-3b", "--revision", COMMIT]):
        done = anven("weights", *words, "--json", folder=tmp_path, HF_HUB_CACHE=str(tmp_path / "hub"))
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["digest"] == digest_of_parts()
    moving = anven("weights", "hf://anven/ANVEN-3b", "--revision", "main", folder=tmp_path)
    assert moving.returncode == 2
    assert "a branch or a tag can move to other weights" in moving.stderr


@pytest.mark.parametrize(
    ("place", "code", "said"),
    [
        ("ftp://127.0.0.1:9/m", 3, "ftp://127.0.0.1:9/m cannot be reached ([Errno 111] Connection refused); check the"),
        ("gs://bucket/m", 3, "(Please install gcsfs to access Google Storage); install it beside anven-pipelines"),
        ("hf://anven/ANVEN-3b", 2, "as `revision` (--revision of `anven weights`)"),
        ("foo://x/y", 2, "an absolute path, s3://, hf:// or oci:// is needed"),
    ],
)
def test_weights_that_cannot_be_looked_at_get_advice_that_helps(
    place: str, code: int, said: str, tmp_path: Path
) -> None:
    done = anven("weights", place, "--json", folder=tmp_path)
    assert done.returncode == code
    assert said in done.stderr
    assert "ANVEN_HOME" not in done.stderr
    assert "S3" not in done.stderr


@pytest.mark.parametrize(
    ("key", "section", "message"),
    [
        ("", True, "ANVEN_GATEWAY_KEY is not set"),
        ("no-prefix-but-long-enough", True, "does not start with `sk-`"),
        ("sk-a-key-of-some-length", False, "has a section `gateway`"),
    ],
)
def test_a_gateway_that_cannot_start_says_why(tmp_path: Path, key: str, message: str, *, section: bool) -> None:
    target = {"engine": "endpoint", "model": "t", "url": "http://127.0.0.1:1/v1"}
    gateway = {"gateway": {"legacy": {"model": "openai/l"}}} if section else {}
    file = {
        "workload": "support",
        "legacy": {"model": "l", "logs": "none.jsonl"},
        "target": target,
        "grading": [{"kind": "exact"}],
        **gateway,
    }
    (tmp_path / "m.yaml").write_text(json.dumps(file))
    environment = {"ANVEN_HOME": str(tmp_path / "home"), "ANVEN_GATEWAY_KEY": key}
    done = anven("gateway", "m.yaml", "--port", "0", "--json", folder=tmp_path, **environment)
    assert done.returncode == 2
    assert message in json.loads(done.stdout)["error"]["message"]
