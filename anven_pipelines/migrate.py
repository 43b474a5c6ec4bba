"""What `anven migrate` does: register the file, run its chain with progress, return the verdict."""

from __future__ import annotations

import platform
import warnings
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

import dagster as dg
from rich.markup import escape

from anven_pipelines.assets.partitions import log_days, workloads
from anven_pipelines.chain import CHAIN_STEPS, Chain, only_one
from anven_pipelines.domain.errors import InvalidInput, UnavailableService
from anven_pipelines.ingest.log_source import log_source
from anven_pipelines.ingest.sources import list_files
from anven_pipelines.resources.artifact_store import ArtifactStore
from anven_pipelines.resources.batch_inference import BatchInference
from anven_pipelines.resources.deployments import deployment_name, missing_settings
from anven_pipelines.resources.environment import api_key
from anven_pipelines.resources.migrations import Migrations
from anven_pipelines.resources.mlflow_tracking import Filled, MlflowTracking
from anven_pipelines.resources.prompt_search import PromptSearch
from anven_pipelines.resources.rollout_tracking import RolloutTracking
from anven_pipelines.resources.state_store import StateStore
from anven_pipelines.run_view import RunView
from anven_pipelines.sensors.log_arrival import declared_keys
from anven_pipelines.spec_grading import RagasGrader
from anven_pipelines.spec_target import EndpointTarget, RecordedTarget

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rich.console import Console

    from anven_pipelines.domain.sign_off import Verdict
    from anven_pipelines.resources.migrations import Declared

Kind = TypeVar("Kind", bound="dg.ConfigurableResource[Any]")


def migrate_file(file: Path, *, home: Path, epoch: str, console: Console) -> Verdict:
    """Run the chain of one migration file.

    Args:
        file: The migration file.
        home: Folder of local state.
        epoch: Answers of the target are reused within an epoch.
        console: Gets progress and warnings.

    Raises:
        InvalidInput: the file is broken, its sources cannot be read, or it is being migrated already.
        AnvenError: a step failed.
    """
    with prepared(home) as definitions:
        declared = of_kind(definitions, "migrations", Migrations).register(file)
        _require_inputs(declared, of_kind(definitions, "batch_inference", BatchInference))
        of_kind(definitions, "prompt_search", PromptSearch).require_runnable(declared.migration)
        of_kind(definitions, "state", StateStore).require_intact()  # the last step must not find it down or changed
        with chain_of(declared, definitions, home=home, steps=CHAIN_STEPS, console=console) as chain:
            return chain.run(declared, epoch=epoch)


@contextmanager
def chain_of(
    declared: Declared, definitions: dg.Definitions, *, home: Path, steps: int, console: Console
) -> Iterator[Chain]:
    """Yield a workload's chain; nobody else runs it meanwhile, and its progress is shown.

    Args:
        declared: The migration.
        definitions: The loaded code location.
        home: Folder of local state.
        steps: How many steps will run.
        console: Gets progress and warnings.

    Raises:
        InvalidInput: it is being migrated already.
    """
    workload = declared.migration.workload
    with only_one(home, f"the migration of workload {workload!r}", name=workload), dagster_instance() as instance:
        view, place = RunView(console, workload, steps=steps), f"{platform.node()}:{home}"
        with view:
            yield Chain(definitions, instance, of_kind(definitions, "artifacts", ArtifactStore), place, view.tell)


def _require_inputs(declared: Declared, batch_inference: BatchInference) -> None:
    """Find what is missing before anything is spent.

    Raises:
        InvalidInput: the logs or the recorded answers cannot be listed, a key is not set, or the model cannot be run.
    """
    target, graders = declared.migration.target, declared.migration.grading
    log_source(declared.migration.legacy, declared.folder)
    if isinstance(target, RecordedTarget):
        list_files(target.answers, base=declared.folder)
    elif isinstance(target, EndpointTarget):
        api_key(target.api_key_env, of=repr(target.model))
    else:
        batch_inference.require_runnable(target)
    for judge in (grader.judge for grader in graders if isinstance(grader, RagasGrader)):
        api_key(judge.api_key_env, of=f"the judge {judge.model!r}")


def register_partitions(home: Path, console: Console) -> None:
    """Make the declared workloads and log days known to Dagster, and MLflow's database if it is a local one.

    The sensor `declared_partitions` does the former too; doing it first spares the user the wait for its first tick.
    """
    with prepared(home) as definitions, dagster_instance() as instance:
        names, days, problems = declared_keys(of_kind(definitions, "migrations", Migrations))
        instance.add_dynamic_partitions(str(workloads.name), names)
        instance.add_dynamic_partitions(str(log_days.name), days)
        problem = tracking_of(definitions).problem()
        for each in (*problems, *([problem] if problem else [])):
            console.print(f"[yellow]warning[/yellow] {escape(each)}", highlight=False, soft_wrap=True)


def tracking_of(definitions: dg.Definitions) -> MlflowTracking:
    """Return the deployment's MLflow tracking."""
    return of_kind(definitions, "tracking", MlflowTracking)


def filled_in(definitions: dg.Definitions) -> Filled:
    """Deliver what MLflow does not have yet: the steps of the outbox, and where the audit log has rollouts."""
    steps = tracking_of(definitions).fill()
    rollouts = of_kind(definitions, "rollout_tracking", RolloutTracking).fill(now=datetime.now(UTC))
    return Filled(
        steps.delivered + rollouts.delivered,
        steps.remaining + rollouts.remaining,
        tuple(dict.fromkeys(steps.problems + rollouts.problems)),
    )


@contextmanager
def dagster_instance() -> Iterator[dg.DagsterInstance]:
    """Open the instance that DAGSTER_HOME describes.

    Raises:
        UnavailableService: its settings are broken, or its database does not answer.
    """
    try:
        opened = dg.DagsterInstance.get()
    except Exception as error:  # each storage has its own error tree
        message = (
            f"Dagster's instance cannot be opened: {_root_cause(error)}; check dagster.yaml in DAGSTER_HOME, the "
            "variables that it names and its database"
        )
        raise UnavailableService(message) from error
    with opened as instance:
        yield instance


@contextmanager
def prepared(home: Path) -> Iterator[dg.Definitions]:
    """Load the definitions with their resources ready to be used outside a run.

    Dagster's notices about its own beta interfaces are not the user's to mend and are kept from the terminal.

    Raises:
        InvalidInput: the environment lacks what the deployment needs.
    """
    if missing := missing_settings():
        message = f"the {deployment_name()} deployment needs {', '.join(missing)}; set them in the environment"
        raise InvalidInput(message)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)
        warnings.simplefilter("ignore", dg.PreviewWarning)
        from anven_pipelines.definitions import definitions  # noqa: PLC0415 - after the home is adopted

        home.mkdir(parents=True, exist_ok=True)
        yield definitions()


def of_kind(definitions: dg.Definitions, key: str, kind: type[Kind]) -> Kind:
    """Return the deployment's resource `key`, its environment variables looked up.

    Dagster's own `process_config_and_initialize` does the same, but opens an instance in memory and never closes it.
    """
    resource = (definitions.resources or {})[key]
    if not isinstance(resource, kind):
        message = f"resource {key!r} is a {type(resource).__name__}; a {kind.__name__} is needed"
        raise TypeError(message)
    return _looked_up(resource)


def _looked_up(resource: Kind) -> Kind:
    """Look up a resource's environment variables, and those of the resources that it uses."""
    found: dict[str, Any] = {}
    for name, value in resource:
        if isinstance(value, dg.EnvVar):
            found[name] = value.get_value()
        elif isinstance(value, dg.ConfigurableResource):
            found[name] = _looked_up(value)
    return resource.model_copy(update=found)


def _root_cause(error: BaseException) -> str:
    """Return the line that says what happened, out of messages that carry stack traces."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).splitlines() or [type(error).__name__]
    return next((line for line in lines if "Error: " in line), lines[0]).strip()
