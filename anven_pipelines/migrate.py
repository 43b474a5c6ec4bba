"""What `anven migrate` does: register the file, run its chain with progress, return the verdict."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import dagster as dg
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from anven_pipelines.chain import CHAIN_ASSETS, Chain, only_one
from anven_pipelines.resources.artifact_store import ArtifactStore
from anven_pipelines.resources.migrations import Migrations
from anven_pipelines.resources.mlflow_tracking import MlflowTracking
from anven_pipelines.run_watch import DONE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rich.console import Console

    from anven_pipelines.domain.sign_off import Verdict
    from anven_pipelines.run_watch import Told


Kind = TypeVar("Kind")


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
        with only_one(home, declared.migration.workload), dg.DagsterInstance.get() as instance:
            view = _View(console, declared.migration.workload)
            with view:
                chain = Chain(definitions, instance, of_kind(definitions, "artifacts", ArtifactStore), view.tell)
                return chain.run(declared, epoch=epoch)


def tracking_of(definitions: dg.Definitions) -> MlflowTracking:
    """Return the deployment's MLflow tracking."""
    return of_kind(definitions, "tracking", MlflowTracking)


@contextmanager
def prepared(home: Path) -> Iterator[dg.Definitions]:
    """Load the definitions with their resources ready to be used outside a run.

    Dagster's notices about its own beta interfaces are not the user's to mend and are kept from the terminal.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)
        warnings.simplefilter("ignore", dg.PreviewWarning)
        from anven_pipelines.definitions import definitions  # noqa: PLC0415 - after the home is adopted

        home.mkdir(parents=True, exist_ok=True)
        yield definitions()


def of_kind(definitions: dg.Definitions, key: str, kind: type[Kind]) -> Kind:
    """Return the deployment's resource `key`, its environment variables looked up."""
    resource = (definitions.resources or {})[key]
    if not isinstance(resource, kind):
        message = f"resource {key!r} is a {type(resource).__name__}; a {kind.__name__} is needed"
        raise TypeError(message)
    return resource


class _View:
    """Shows the steps' progress; warnings scroll by above it and stay."""

    def __init__(self, console: Console, workload: str) -> None:
        self._console = console
        self._steps: set[str] = set()
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[now]}"),
            console=console,
            transient=True,
        )
        self._task = self._progress.add_task(workload, total=len(CHAIN_ASSETS) + 2, now="")

    def __enter__(self) -> None:
        self._progress.start()

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def tell(self, told: Told) -> None:
        """Show one thing that happened."""
        if told.warning:
            self._console.print(f"[yellow]{told.step}[/yellow] {told.text}", highlight=False, soft_wrap=True)
        if told.text == DONE:
            self._steps.add(told.step)
        self._progress.update(self._task, completed=len(self._steps), now=f"{told.step}: {told.text}"[:100])
