"""What `anven golden export` and `anven golden import` do."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import polars as pl

from anven_pipelines.assets.holdout import ledger_of, record_shown
from anven_pipelines.domain.canonical import digest_of
from anven_pipelines.domain.errors import InvalidInput, MissingInput
from anven_pipelines.domain.golden import GOLDEN, NOTHING_SEEN
from anven_pipelines.domain.golden_exchange import (
    SPLITS,
    Record,
    dataset_card,
    imported_rows,
    json_records,
    jsonl,
    mlflow_records,
    of_mlflow,
    splits_are_told,
)
from anven_pipelines.domain.holdout import EXPORTED, HOLDOUT_WAIVER, holdout_stream, require_sealed
from anven_pipelines.migrate import of_kind, prepared, tracking_of
from anven_pipelines.resources.artifact_store import ArtifactStore
from anven_pipelines.resources.migrations import Migrations
from anven_pipelines.resources.state_store import StateStore

if TYPE_CHECKING:
    import dagster as dg

    from anven_pipelines.domain.manifest import Manifest

Form = Literal["jsonl", "parquet", "huggingface", "mlflow"]
_FROM_MLFLOW = "mlflow:"


class Exported(NamedTuple):
    """What left, and where it is now."""

    workload: str
    golden_dataset: str
    form: str
    to: str
    items: int
    sealed_items: int


class Imported(NamedTuple):
    """The frozen version that an import made."""

    workload: str
    golden_dataset: str
    items: int
    sealed_items: int


def export_golden(workload: str, *, home: Path, to: Path | None, form: Form, sealed: bool) -> Exported:
    """Write the current version for another tool; what leaves open was shown, and no later version seals it.

    Args:
        workload: Whose golden dataset it is.
        home: Folder of local state.
        to: File or folder that does not exist yet; None for MLflow.
        form: What is written.
        sealed: Let the sealed items out too. This is an opening: it is ledgered first, and burns them.

    Raises:
        MissingInput: the workload has no golden dataset.
        InvalidInput: the place is taken or missing, or no item is open.
    """
    _require_place(to, form)
    with prepared(home) as definitions:
        artifacts = of_kind(definitions, "artifacts", ArtifactStore)
        if (manifest := artifacts.load_manifest("golden_dataset", workload)) is None:
            message = f"workload {workload!r} has no golden dataset; run `anven migrate` on its file, or import one"
            raise MissingInput(message)
        rows = artifacts.read(manifest)
        opened = rows if sealed else rows.filter(pl.col("split") == "open")
        if opened.is_empty():
            message = (
                f"all {rows.height} items of {workload!r} are sealed; --sealed lets them out and burns the holdout"
            )
            raise InvalidInput(message)
        place = str(to) if to else f"mlflow:{workload}-{manifest.digest[:12]}"
        counted = int((opened["split"] == "sealed").sum())
        state = of_kind(definitions, "state", StateStore)
        state.require_intact()
        record_shown(manifest, workload, state)
        if counted:
            _ledger(state, workload, manifest, form=form, to=place)
        _write(definitions, workload, manifest, opened, form=form, to=to, name=place.removeprefix(_FROM_MLFLOW))
    return Exported(workload, manifest.digest, form, place, opened.height, counted)


def import_golden(source: str, *, workload: str, home: Path) -> Imported:
    """Freeze a golden dataset that was made elsewhere.

    The version becomes the workload's current one; `golden.version` in its migration file makes migrations judge on it.

    Args:
        source: A JSON lines or Parquet file, a Hugging Face dataset folder, or `mlflow:NAME`.
        workload: A declared workload, or its migration file, which is then registered.
        home: Folder of local state.

    Raises:
        InvalidInput: a row is no golden item, or the source is of none of these forms; nothing is imported.
        BurntHoldout: the rows do not say their split, and each was seen.
    """
    with prepared(home) as definitions:
        migrations = of_kind(definitions, "migrations", Migrations)
        is_file = workload.endswith((".yaml", ".yml"))
        migration = (migrations.register(Path(workload)) if is_file else migrations.of(workload)).migration
        workload = migration.workload
        artifacts = of_kind(definitions, "artifacts", ArtifactStore)
        if source.startswith(_FROM_MLFLOW):
            name = source.removeprefix(_FROM_MLFLOW)
            records = of_mlflow(tracking_of(definitions).read_dataset(name))
        else:
            records = _read(Path(source))
        waived = HOLDOUT_WAIVER in migration.sign_off.waive
        rows = imported_rows(records, migration.golden, seen=NOTHING_SEEN)
        if not waived:
            state = of_kind(definitions, "state", StateStore)
            seen = ledger_of(workload, state, artifacts, items=rows.select("id", "source_prompt")).seen()
            rows = imported_rows(records, migration.golden, seen=seen)
        if not splits_are_told(records):
            require_sealed(rows, migration)
        sealed = int((rows["split"] == "sealed").sum())
        facts = {"imported": True, "items": rows.height, "sealed": sealed, "open": rows.height - sealed}
        manifest = artifacts.publish(GOLDEN, [rows], inputs={"imported": digest_of(source)}, facts={"golden": facts})
        artifacts.save_manifest("golden_dataset", workload, manifest)
    return Imported(workload, manifest.digest, rows.height, sealed)


def _require_place(to: Path | None, form: Form) -> None:
    if (to is None) != (form == "mlflow"):
        message = "--to is needed for a file or folder, and only there: mlflow has a place of its own"
        raise InvalidInput(message)
    if to is not None and to.exists():
        message = f"{to} exists already; name a place that does not, or remove it"
        raise InvalidInput(message)


def _ledger(state: StateStore, workload: str, manifest: Manifest, *, form: Form, to: str) -> None:
    """Write the opening down before anything leaves."""
    now = datetime.now(UTC)
    state.append(
        stream=holdout_stream(workload),
        kind=EXPORTED,
        key=f"export/{now.isoformat()}",
        payload={"golden_dataset": manifest.digest, "by": _user(), "form": form, "to": to},
        now=now,
    )


def _user() -> str:
    """Return who runs this; a container may run under a number that no name belongs to."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def _write(
    definitions: dg.Definitions,
    workload: str,
    manifest: Manifest,
    rows: pl.DataFrame,
    *,
    form: Form,
    to: Path | None,
    name: str,
) -> None:
    """Write one form; a file or folder appears whole or not at all."""
    if to is None:
        tags = {"workload": workload, "golden_dataset": manifest.digest}
        tracking_of(definitions).write_dataset(name, f"anven/{workload}", mlflow_records(rows), tags=tags)
        return
    to.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=to.parent, prefix=f".{to.name}."))
    try:
        made = aside / "made"
        if form == "jsonl":
            made.write_text(jsonl(rows), encoding="utf-8")
        elif form == "parquet":
            rows.write_parquet(made)
        else:
            _write_folder(made, workload, manifest, rows)
        made.rename(to)
    finally:
        shutil.rmtree(aside)


def _write_folder(folder: Path, workload: str, manifest: Manifest, rows: pl.DataFrame) -> None:
    (folder / "data").mkdir(parents=True)
    (folder / "README.md").write_text(dataset_card(workload, manifest.digest, rows), encoding="utf-8")
    for (split,), part in rows.group_by("split"):
        part.sort("id").write_parquet(folder / "data" / f"{split}.parquet")


def _read(source: Path) -> list[Record]:
    """Read a file or folder by what it is."""
    try:
        if source.is_dir():
            files = [file for split in SPLITS if (file := source / "data" / f"{split}.parquet").exists()]
            if not files:
                message = f"{source}: a folder with data/open.parquet or data/sealed.parquet is needed"
                raise InvalidInput(message)
            return _of_frame(pl.concat([pl.read_parquet(file) for file in files]))
        if source.suffix == ".parquet":
            return _of_frame(pl.read_parquet(source))
        return json_records(source.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, pl.exceptions.PolarsError) as error:
        message = f"{source} cannot be read ({error}); JSON lines, Parquet or a Hugging Face folder is needed"
        raise InvalidInput(message) from error


def _of_frame(frame: pl.DataFrame) -> list[Record]:
    rows: list[dict[str, Any]] = json.loads(frame.write_json())
    return [Record(at, row) for at, row in enumerate(rows, start=1)]
