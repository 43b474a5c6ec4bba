"""Runs a workload's chain of assets in this process, as the Dagster UI would, and returns its verdict."""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import dagster as dg

from anven_pipelines.assets.materialization import read_document
from anven_pipelines.assets.partitions import log_days, workloads
from anven_pipelines.assets.prompts import EPOCH
from anven_pipelines.domain import errors
from anven_pipelines.domain.errors import AnvenError, CheckFailed, InvalidInput, StepFailed
from anven_pipelines.domain.load_report import LoadReport
from anven_pipelines.domain.sign_off import Verdict
from anven_pipelines.ingest.log_source import log_source
from anven_pipelines.run_watch import RunWatch, Told

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from anven_pipelines.domain.manifest import Manifest
    from anven_pipelines.resources.artifact_store import ArtifactStore
    from anven_pipelines.resources.migrations import Declared

LOG_ASSETS: Final = ("request_log", "rejected_lines")
CHAIN_ASSETS: Final = (
    "power_plan",
    "golden_dataset",
    "prompt_baseline",
    "adapted_prompt",
    "legacy_answers",
    "target_answers",
    "scores",
    "scorecard",
    "cost_model",
    "sign_off",
)
LOAD_ASSETS: Final = ("power_plan", "golden_dataset", "prompt_baseline", "adapted_prompt", "load_benchmark")
CHAIN_STEPS: Final = 2 + len(CHAIN_ASSETS)  # LOG_ASSETS are one step, workload_inventory is another
LOAD_STEPS: Final = 1 + len(LOAD_ASSETS)  # without workload_inventory
WORKLOAD_TAG: Final = "anven/migrate"
PLACE_TAG: Final = "anven/place"
VERDICT_CHECK: Final = "verdict_is_go"
_QUIET: Final = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


@dataclass(frozen=True)
class Chain:
    """A workload's chain on a Dagster instance.

    Attributes:
        definitions: The loaded code location.
        instance: Where runs, events and partitions are kept.
        artifacts: The artifact store of the definitions' deployment.
        place: Host and home folder whose lock the caller holds; runs carry it.
        tell: Called with what happens, from a watching thread.
    """

    definitions: dg.Definitions
    instance: dg.DagsterInstance
    artifacts: ArtifactStore
    place: str
    tell: Callable[[Told], None]

    def run(self, declared: Declared, *, epoch: str = "") -> Verdict:
        """Materialise the log days, the inventory and the chain, in that order.

        Args:
            declared: The migration.
            epoch: Answers of the target are reused within an epoch; another value asks afresh, and so searches afresh.

        Raises:
            CheckFailed: a blocking check stopped the chain before the verdict.
            StepFailed: a step ended with an error that is not one of the product's own.
            AnvenError: a step failed; the error is the step's own.
        """
        workload = declared.migration.workload
        self._read_logs(declared)
        self._materialize(("workload_inventory",), None, workload=workload)
        config = _within(epoch, "adapted_prompt", "target_answers")
        self._materialize(CHAIN_ASSETS, workload, workload=workload, config=config)
        return Verdict.model_validate_json(read_document(self.artifacts, self._made("sign_off", workload)))

    def measure_load(self, declared: Declared) -> LoadReport:
        """Materialise the log days, and the chain as far as the load benchmark needs it.

        Args:
            declared: The migration, with a section `load`.

        Raises:
            CheckFailed: a blocking check stopped it before the target was asked.
            StepFailed: a step ended with an error that is not one of the product's own.
            AnvenError: a step failed; the error is the step's own.
        """
        workload = declared.migration.workload
        self._read_logs(declared)
        found = self.artifacts.load_manifest("adapted_prompt", workload)
        # The prompt is that of the verdict: answers of an earlier epoch might find another one.
        config = _within(found.facts.get(EPOCH, "") if found else "", "adapted_prompt")
        self._materialize(LOAD_ASSETS, workload, workload=workload, config=config)
        return LoadReport.model_validate(self._made("load_benchmark", workload).facts["load"])

    def show_rollout(self, workload: str) -> None:
        """Materialise where a workload's rollout stands, so that the UI shows what became of it.

        Raises:
            AnvenError: the step failed; the error is the step's own.
        """
        self._materialize(("rollout_status",), workload, workload=workload)

    def _read_logs(self, declared: Declared) -> None:
        workload = declared.migration.workload
        self._close_killed_runs(workload)
        days = self._days(declared)
        self.instance.add_dynamic_partitions(str(workloads.name), [workload])
        self.instance.add_dynamic_partitions(str(log_days.name), days)
        for day in days:
            self._materialize(LOG_ASSETS, day, workload=workload)

    def _made(self, asset: str, workload: str) -> Manifest:
        manifest = self.artifacts.load_manifest(asset, workload)
        if manifest is None:
            message = f"{asset} of {workload!r} left no manifest in {self.artifacts.url}; run the chain again"
            raise StepFailed(message)
        return manifest

    def _close_killed_runs(self, workload: str) -> None:
        """End the runs of an earlier command that was killed: nobody else does, and the UI would show them running.

        The caller holds the workload's lock, so whatever still seems to run from this place has no process.
        """
        alive = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.CANCELING]
        for run in self.instance.get_runs(
            dg.RunsFilter(tags={WORKLOAD_TAG: workload, PLACE_TAG: self.place}, statuses=alive)
        ):
            self.instance.report_run_failed(run, "the process of `anven` ended before the run did")

    def _days(self, declared: Declared) -> list[str]:
        """Return the days of the source's files, and the days that still hold rows of files that are gone."""
        source = log_source(declared.migration.legacy, declared.folder)
        days = {file.day for file in source.files}
        for day in self.instance.get_dynamic_partitions(str(log_days.name)):
            manifest = self.artifacts.load_manifest("request_log", day)
            if manifest and any(part.labels.get("source") == source.key for part in manifest.parts):
                days.add(day)
        return sorted(days)

    def _materialize(
        self,
        assets: Sequence[str],
        partition: str | None,
        *,
        workload: str,
        config: dict[str, Any] | None = None,
    ) -> None:
        """Run a selection in this process; whatever fails in it but the verdict's own gate is raised."""
        job = self.definitions.resolve_implicit_global_asset_job_def()
        with RunWatch(self.instance, self.tell) as watch:
            result = job.execute_in_process(
                run_config={**_QUIET, **(config or {})},
                instance=self.instance,
                partition_key=partition,
                asset_selection=[dg.AssetKey(asset) for asset in assets],
                run_id=watch.run_id,
                raise_on_error=False,
                tags={WORKLOAD_TAG: workload, PLACE_TAG: self.place},
            )
        for event in result.all_node_events:
            if event.is_step_failure and (failure := _own_failure(event)) is not None:
                raise failure
        if failed := _failed_gates(result):
            raise CheckFailed("\n".join(failed))


@contextmanager
def only_one(home: Path, what: str, *, name: str) -> Iterator[None]:
    """Hold a lock, so that two commands do not do the same thing at once, such as materialise one partition.

    Args:
        home: Folder of local state.
        what: What goes on, as the other process's user knows it.
        name: Of the lock; no two things share one.

    Raises:
        InvalidInput: another process holds it.
    """
    folder = home / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            message = f"{what} is under way in process {holder}; wait for it to end"
            raise InvalidInput(message) from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def _within(epoch: str, *assets: str) -> dict[str, Any]:
    """Return the run configuration under which assets reuse the answers of an epoch."""
    return {"ops": {asset: {"config": {"epoch": epoch}} for asset in assets}} if epoch else {}


def _failed_gates(result: dg.ExecuteInProcessResult) -> list[str]:
    """Say which blocking checks failed; a verdict that is not GO is a result, not a failure of the chain."""
    return [
        f"check {each.check_name} of {each.asset_key.to_user_string()} failed: {each.description}"
        for each in result.get_asset_check_evaluations()
        if not each.passed and each.severity == dg.AssetCheckSeverity.ERROR and each.check_name != VERDICT_CHECK
    ]


def _own_failure(event: dg.DagsterEvent) -> AnvenError | None:
    """Return the step's failure, as the product's own error where it is one; None for a failed blocking check.

    What a check found stands in its result, which has been told already.
    """
    data = event.step_failure_data
    error = data.error
    while error is not None:
        kind = getattr(errors, error.cls_name or "", None)
        if isinstance(kind, type) and issubclass(kind, AnvenError):
            message = error.message.split(": ", 1)[-1].strip()
            # Of a kind that is built from parts only the message is left, so its root stands for it.
            return InvalidInput(message) if issubclass(kind, InvalidInput) else kind(message)
        if error.cls_name == "DagsterAssetCheckFailedError":
            return None
        if error.cls_name == "DagsterExecutionInterruptedError":
            raise KeyboardInterrupt
        innermost, error = error, error.cause
    step = event.step_key or "a step"
    return StepFailed(f"{step} failed: {innermost.message.strip()}")
