"""What `anven doctor` looks at: everything a migration needs here, each with how to mend it."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import urllib.error
import urllib.request
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from anven_pipelines.assets.golden import declared_truths
from anven_pipelines.assets.holdout import stale_verdict
from anven_pipelines.assets.partitions import log_days
from anven_pipelines.chain import CHAIN_ASSETS, LOG_ASSETS
from anven_pipelines.domain.errors import AnvenError, InvalidInput
from anven_pipelines.domain.sign_off import JUDGED
from anven_pipelines.domain.table import Column, Table
from anven_pipelines.ingest.log_source import log_source
from anven_pipelines.ingest.sources import list_files
from anven_pipelines.migrate import dagster_instance, of_kind, prepared
from anven_pipelines.resources.artifact_store import ArtifactStore
from anven_pipelines.resources.batch_inference import BatchInference
from anven_pipelines.resources.deployments import deployment_name, missing_settings
from anven_pipelines.resources.environment import api_key
from anven_pipelines.resources.migrations import Declared, Migrations
from anven_pipelines.resources.mlflow_tracking import MlflowTracking
from anven_pipelines.resources.outbox import Outbox
from anven_pipelines.resources.state_store import StateStore
from anven_pipelines.spec_grading import Judge, RagasGrader
from anven_pipelines.spec_target import BatchTarget, EndpointTarget, JobTarget, NanoTarget, RecordedTarget

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    import dagster as dg

_FREE_BYTES: Final = 2 * 1024**3
_PROBE_S: Final = 3.0


class Finding(NamedTuple):
    """One thing looked at; only a problem stops a migration."""

    name: str
    status: Literal["ok", "warning", "problem"]
    found: str
    remedy: str = ""

    @property
    def ok(self) -> bool:
        """Whether a migration can run in spite of it."""
        return self.status != "problem"


def examine(home: Path) -> list[Finding]:
    """Look at everything; a broken thing never keeps the next from being looked at."""
    findings = [_python(), _disk(home), *_extras()]
    if missing := missing_settings():
        remedy = "set them in the environment; resources/deployments.py says what each is"
        return [*findings, Finding("settings", "problem", f"{deployment_name()} lacks {', '.join(missing)}", remedy)]
    with prepared(home) as definitions:
        findings += [
            _guarded(
                "artifact store",
                lambda: _artifacts(definitions),
                "make the folder writable, or mend ANVEN_ARTIFACTS_URL",
            ),
            _guarded("state store", lambda: _state(definitions), "start the database, or mend ANVEN_STATE_URL"),
            _guarded("dagster", _dagster, "start its database, or mend dagster.yaml in DAGSTER_HOME"),
            _guarded("mlflow", lambda: _mlflow(definitions), "start the MLflow server, or mend MLFLOW_TRACKING_URI"),
        ]
        migrations = of_kind(definitions, "migrations", Migrations)
        findings.append(
            _guarded(
                "published tables",
                lambda: _published(definitions, sorted(migrations.catalogue().declared)),
                "materialise the asset again, or restore the file from a backup",
            )
        )
        findings += _verdicts(definitions, migrations.catalogue().declared)
        findings += _migrations(migrations, of_kind(definitions, "batch_inference", BatchInference))
    return findings


def _guarded(name: str, look: Callable[[], Finding], remedy: str) -> Finding:
    try:
        return look()
    except AnvenError as error:
        return Finding(name, "problem", str(error), remedy)


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    supported = (3, 11) <= sys.version_info[:2] <= (3, 13)
    return Finding(
        "python", "ok" if supported else "problem", version, "" if supported else "use Python 3.11, 3.12 or 3.13"
    )


def _disk(home: Path) -> Finding:
    home.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(home).free
    found = f"{free / 1024**3:.1f} GiB free in {home}"
    return Finding("disk", "ok", found) if free > _FREE_BYTES else Finding("disk", "warning", found, "free some space")


def _extras() -> Iterator[Finding]:
    """Look for the packages that a shared deployment needs beyond the default ones."""
    needed = {"postgres": "psycopg2", "s3": "s3fs"} if deployment_name() != "local" else {}
    for extra, package in needed.items():
        if importlib.util.find_spec(package) is None:
            yield Finding(f"extra {extra}", "problem", f"{package} is not installed", f"install the extra `{extra}`")


def _artifacts(definitions: dg.Definitions) -> Finding:
    import polars as pl  # noqa: PLC0415 - 0.1 s that the other commands do not need here

    store = of_kind(definitions, "artifacts", ArtifactStore)
    probe = Table("doctor", (Column("value", pl.Int64, "Always 1."),))
    manifest = store.publish(probe, [pl.DataFrame({"value": [1]})])
    store.read(manifest)  # raises where what comes back is not what was written
    return Finding("artifact store", "ok", f"{store.url} can be written and read")


def _state(definitions: dg.Definitions) -> Finding:
    verification = of_kind(definitions, "state", StateStore).verify()
    if verification.ok:
        return Finding("state store", "ok", f"{verification.events} events, hash chain unbroken")
    remedy = "do not trust the state; restore the database from a backup and find out who wrote to it"
    return Finding("state store", "problem", f"event {verification.broken_seq}: {verification.reason}", remedy)


def _published(definitions: dg.Definitions, workloads: Iterable[str]) -> Finding:
    """Check the bytes of everything that the workloads' chains and the log days hold now."""
    store = of_kind(definitions, "artifacts", ArtifactStore)
    with dagster_instance() as instance:
        days = instance.get_dynamic_partitions(str(log_days.name))
    held = [(asset, day) for day in days for asset in LOG_ASSETS]
    held += [(asset, workload) for workload in workloads for asset in (*CHAIN_ASSETS, JUDGED)]
    manifests = [manifest for asset, partition in held if (manifest := store.load_manifest(asset, partition))]
    for manifest in manifests:
        store.verify(manifest)
    parts = sum(len(manifest.parts) for manifest in manifests)
    return Finding("published tables", "ok", f"{len(manifests)} tables in {parts} parts, all as published")


def _verdicts(definitions: dg.Definitions, declared: Mapping[str, Declared]) -> Iterator[Finding]:
    """Name the verdicts that rest on ground truths which have changed since, in the truth file or in later versions."""
    artifacts, state = of_kind(definitions, "artifacts", ArtifactStore), of_kind(definitions, "state", StateStore)
    for workload, each in declared.items():
        try:
            golden = artifacts.load_manifest("golden_dataset", workload)
            truths = declared_truths(each, state)
            rows = artifacts.read(golden) if golden else None
            if rows is not None and truths is not None:
                rows = rows.drop("ground_truth").join(truths.rows, on="id", how="left")
            stale = None if rows is None else stale_verdict(workload, rows, state, artifacts)
        except AnvenError as error:
            stale = str(error)
        if stale:
            yield Finding(f"{workload}: verdict", "warning", stale, "run `anven migrate` again")


def _dagster() -> Finding:
    with dagster_instance() as instance:
        return Finding("dagster", "ok", f"{instance.get_runs_count()} runs kept")


def _mlflow(definitions: dg.Definitions) -> Finding:
    tracking = of_kind(definitions, "tracking", MlflowTracking)
    waiting = len(Outbox(Path(tracking.outbox)).waiting())
    if problem := tracking.problem():
        return Finding("mlflow", "problem", problem, "start the MLflow server, or mend MLFLOW_TRACKING_URI")
    if waiting:
        return Finding("mlflow", "warning", f"{waiting} runs wait to be delivered", "run `anven fill-mlflow`")
    return Finding("mlflow", "ok", "answers; no run waits to be delivered")


def _migrations(migrations: Migrations, batch_inference: BatchInference) -> Iterator[Finding]:
    catalogue = migrations.catalogue()
    if not catalogue.declared and not catalogue.broken:
        yield Finding(
            "migrations", "warning", f"no migration file in {migrations.folder}", "write one; README shows a small one"
        )
    for text in catalogue.broken.values():
        yield Finding(
            "migrations", "problem", text, "mend the file; docs/migration.schema.json tells editors what is allowed"
        )
    for workload, declared in sorted(catalogue.declared.items()):
        yield from _workload(workload, declared, batch_inference)


def _workload(workload: str, declared: Declared, batch_inference: BatchInference) -> Iterator[Finding]:
    migration, target = declared.migration, declared.migration.target
    yield _guarded(f"{workload}: logs", lambda: _logs(workload, declared), "mend legacy.logs")
    if isinstance(target, RecordedTarget):
        look = lambda: _recorded(workload, target, declared.folder)  # noqa: E731 - one of two ways to look
        yield _guarded(f"{workload}: answers", look, "mend target.answers")
    if isinstance(target, NanoTarget | JobTarget):
        run = lambda: _runnable(workload, target, batch_inference)  # noqa: E731 - as above
        yield _guarded(f"{workload}: model", run, "mend the target, or its environment")
    judges: list[Judge] = [each.judge for each in migration.grading if isinstance(each, RagasGrader)]
    if migration.rollout.judge is not None:
        judges.append(migration.rollout.judge)
    if judges and importlib.util.find_spec("ragas") is None:
        yield Finding(f"{workload}: grading", "problem", "ragas is not installed", "install the extra `eval`")
    endpoints: list[EndpointTarget | Judge] = [*judges]
    if isinstance(target, EndpointTarget):
        endpoints.append(target)
    for endpoint in endpoints:
        yield from _endpoint(workload, endpoint.url, endpoint.api_key_env)


def _logs(workload: str, declared: Declared) -> Finding:
    files = log_source(declared.migration.legacy, declared.folder).files
    return Finding(f"{workload}: logs", "ok", f"{len(files)} files of {len({file.day for file in files})} days")


def _recorded(workload: str, target: RecordedTarget, folder: str) -> Finding:
    return Finding(f"{workload}: answers", "ok", f"{len(list_files(target.answers, base=folder))} files")


def _runnable(workload: str, target: BatchTarget, batch_inference: BatchInference) -> Finding:
    batch_inference.require_runnable(target)
    return Finding(f"{workload}: model", "ok", f"{target.model} can be run here")


def _endpoint(workload: str, url: str, api_key_env: str | None) -> Iterator[Finding]:
    try:
        api_key(api_key_env, of=f"the endpoint {url}")
    except InvalidInput as error:
        yield Finding(f"{workload}: key", "problem", str(error), f"export {api_key_env}=... before the run")
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/models", timeout=_PROBE_S) as response:  # noqa: S310 - the spec admits http(s) only
            yield Finding(f"{workload}: endpoint", "ok", f"{url} answers {response.status}")
    except urllib.error.HTTPError as error:
        broken = error.code >= HTTPStatus.INTERNAL_SERVER_ERROR
        yield Finding(
            f"{workload}: endpoint",
            "problem" if broken else "ok",
            f"{url} answers {error.code}",
            "look at the server's own log" if broken else "",
        )
    except (urllib.error.URLError, OSError) as error:
        yield Finding(
            f"{workload}: endpoint", "problem", f"{url} does not answer: {error}", "start the endpoint, or mend its url"
        )
