"""Content-addressed Parquet and small JSON documents on a local folder or an object store.

Layout under the root:

    parts/<table>/<sha256>.parquet                  immutable; the name is the digest of the bytes
    manifests/<asset>/<partition>/current.json      what the partition holds now
    manifests/<asset>/<partition>/<digest>.json     what it held before
    documents/<name>.json                           verdicts, prompts
    checkpoints/<key>/<sha256>.parquet              progress of long work
"""

from __future__ import annotations

import hashlib
import json
from contextlib import ExitStack
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import dagster as dg
import duckdb
import polars as pl
import polars.selectors as cs
from pydantic import Field, PrivateAttr

from anven_pipelines.domain.canonical import canonical_json, digest_of_rows
from anven_pipelines.domain.errors import CorruptArtifact, InvalidInput, MissingInput
from anven_pipelines.domain.manifest import Manifest, Part
from anven_pipelines.domain.table import UTC_TIMESTAMP, Table
from anven_pipelines.resources.checkpoint import Checkpoint, checkpoint, parquet_of
from anven_pipelines.resources.durable_folder import DurableFolder, path_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_UNPARTITIONED: Final = "~all"  # no partition's path name starts with "~" and goes on
_DTYPES: Final[Mapping[str, Any]] = {
    str(dtype): dtype
    for dtype in (pl.String(), pl.Binary(), pl.Boolean(), pl.Int64(), pl.Float64(), pl.Date(), UTC_TIMESTAMP)
}


class LabelledFrame(NamedTuple):
    """Rows of one part, and labels that stand beside it in the manifest, such as its source file."""

    frame: pl.DataFrame
    labels: Mapping[str, str]


class ArtifactStore(dg.ConfigurableResource[None]):
    """Publishes tables as immutable parts with a manifest, and reads back only what its digest vouches for."""

    url: str = Field(description="Local path or fsspec URL, such as .anven/artifacts or s3://bucket/prefix.")
    storage_options: dict[str, Any] = Field(
        default_factory=dict,
        description="Options of the fsspec file system, such as endpoint_url; credentials come from the environment.",
    )
    _opened: DurableFolder | None = PrivateAttr(default=None)

    def publish(
        self,
        table: Table,
        frames: Iterable[pl.DataFrame | LabelledFrame],
        *,
        inputs: Mapping[str, str] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> Manifest:
        """Store one part per frame, holding one frame at a time, and return the manifest.

        Without any frame one empty part is stored, so that every published table can be queried. A part that
        stands already is left alone; one that was damaged is mended.

        Args:
            table: What the rows are; each frame is made to conform to it.
            frames: Rows, bare or with labels for their part.
            inputs: Upstream asset to the digest it had.
            facts: Small JSON facts that belong to the content's digest.

        Raises:
            InvalidInput: a number is NaN or infinite.
            UnavailableService: a part could not be written; no partial file is visible.
        """
        parts = tuple(self._publish_part(table, frame) for frame in frames)
        return Manifest(
            table=table.name,
            columns={name: str(dtype) for name, dtype in table.schema.items()},
            parts=parts or (self._publish_part(table, table.empty()),),
            inputs=dict(inputs or {}),
            facts=dict(facts or {}),
        )

    def read(self, manifest: Manifest) -> pl.DataFrame:
        """Return all rows, part after part.

        Raises:
            CorruptArtifact: a part is missing, or not what was published.
        """
        schema = _schema_of(manifest)
        return pl.concat([pl.DataFrame(schema=schema), *(self._read_part(manifest, part) for part in manifest.parts)])

    def query(
        self, sql: str, parameters: Mapping[str, object] | Sequence[object] = (), /, **tables: Manifest
    ) -> pl.DataFrame:
        """Run SQL on an in-memory DuckDB in which each manifest is a view of its keyword's name.

        DuckDB streams the Parquet files, so tables may be larger than memory; parts on an object store are first
        copied to a temporary folder. Every part is checked against its digest before it is queried.

        Args:
            sql: A query in DuckDB's dialect.
            parameters: Values for `?` or `$1` (a sequence) or `$name` (a mapping) in the query.
            tables: View name to manifest.

        Raises:
            CorruptArtifact: a part is missing, or not what was published.
        """
        with ExitStack() as stack:
            spill = Path(stack.enter_context(TemporaryDirectory(prefix="anven-query-")))
            connection = stack.enter_context(duckdb.connect(config=_duckdb_settings(spill)))
            connection.execute("SET TimeZone = 'UTC'")
            for name, manifest in tables.items():
                self._create_view(connection, name, manifest, spill)
            result: pl.DataFrame = connection.sql(sql, params=parameters or None).pl()
            return result

    def verify(self, manifest: Manifest) -> None:
        """Check the bytes of every part against its digest, in chunks.

        Raises:
            CorruptArtifact: a part is missing, or not what was published.
        """
        for part in manifest.parts:
            with TemporaryDirectory(prefix="anven-verify-") as spill:
                self._verified_path(part, Path(spill))

    def write_json(self, name: str, value: object) -> str:
        """Store a small JSON document under a name, replacing an older one; return where it is.

        Args:
            name: `/` makes folders, such as `verdict/support-answers`; a `.json` at its end may be left out.
            value: JSON without NaN; stored in its canonical form.
        """
        uri = _document_uri(name)
        self.folder.write(uri, canonical_json(value).encode())
        return self.folder.location(uri)

    def read_json(self, name: str) -> Any:  # noqa: ANN401 - JSON is of any type
        """Return the JSON document stored under a name.

        Raises:
            MissingInput: nothing was stored under the name.
            CorruptArtifact: the document is not JSON.
        """
        uri = _document_uri(name)
        if (data := self.folder.read(uri)) is None:
            message = f"no document {name!r} at {self.folder.location(uri)}; materialise the asset that writes it first"
            raise MissingInput(message)
        try:
            return json.loads(data)
        except ValueError as error:
            raise self._corrupt(uri, expected="JSON", found=str(error)) from error

    def save_manifest(self, asset: str, partition: str | None, manifest: Manifest) -> None:
        """Make the manifest what the asset's partition (None: the unpartitioned asset) holds from now on."""
        data = manifest.model_dump_json().encode()
        folder = _manifest_folder(asset, partition)
        self.folder.write(f"{folder}/{manifest.digest}.json", data)
        self.folder.write(f"{folder}/current.json", data)

    def load_manifest(self, asset: str, partition: str | None, *, digest: str | None = None) -> Manifest | None:
        """Return what the asset's partition holds now, or held under a digest; None if it never held it.

        Raises:
            CorruptArtifact: the stored manifest cannot be read, or is not the one of that digest.
        """
        uri = f"{_manifest_folder(asset, partition)}/{path_name(digest or 'current')}.json"
        if (data := self.folder.read(uri)) is None:
            return None
        try:
            manifest = Manifest.model_validate_json(data)
        except ValueError as error:
            raise self._corrupt(uri, expected="a manifest", found=str(error)) from error
        if digest is not None and manifest.digest != digest:
            raise self._corrupt(uri, expected=f"digest {digest}", found=f"digest {manifest.digest}")
        return manifest

    def checkpoint(self, table: Table, key: str) -> Checkpoint:
        """Return the append-only progress kept under a key, such as the digest of the work's inputs."""
        return checkpoint(self.folder, key, table)

    def location(self, uri: str) -> str:
        """Return where a part is, for people: a local path or a full URL."""
        return self.folder.location(uri)

    @property
    def folder(self) -> DurableFolder:
        """Where everything is kept, for what is no table."""
        if self._opened is None:
            self._opened = DurableFolder(self.url, self.storage_options)
        return self._opened

    def _publish_part(self, table: Table, rows: pl.DataFrame | LabelledFrame) -> Part:
        frame, labels = rows if isinstance(rows, LabelledFrame) else (rows, {})
        frame = table.conform(frame)
        _refuse_non_finite(table, frame)
        data = parquet_of(frame)
        sha256 = hashlib.sha256(data).hexdigest()
        uri = f"parts/{path_name(table.name)}/{sha256}.parquet"
        if not self._stands(uri, data):
            self.folder.write(uri, data)
        return Part(
            uri=uri,
            sha256=sha256,
            rows_digest=digest_of_rows(frame),
            rows=frame.height,
            bytes=len(data),
            labels=dict(labels),
        )

    def _stands(self, uri: str, data: bytes) -> bool:
        """Compare the bytes too: to publish again is how a damaged part is mended."""
        return self.folder.size(uri) == len(data) and self.folder.read(uri) == data

    def _read_part(self, manifest: Manifest, part: Part) -> pl.DataFrame:
        data = self.folder.read(part.uri)
        found = None if data is None else hashlib.sha256(data).hexdigest()
        if data is None or found != part.sha256:
            raise self._corrupt_part(part, found)
        frame = pl.read_parquet(BytesIO(data))
        columns = {name: str(dtype) for name, dtype in frame.schema.items()}
        if list(columns.items()) != list(manifest.columns.items()):
            raise self._corrupt(part.uri, expected=f"columns {manifest.columns}", found=f"columns {columns}")
        return frame

    def _create_view(self, connection: duckdb.DuckDBPyConnection, name: str, manifest: Manifest, folder: Path) -> None:
        if not manifest.parts:
            connection.from_arrow(pl.DataFrame(schema=_schema_of(manifest)).to_arrow()).create_view(name)
            return
        paths = [str(self._verified_path(part, folder)) for part in manifest.parts]
        connection.read_parquet(paths).create_view(name)

    def _verified_path(self, part: Part, folder: Path) -> Path:
        """Return a local file with the part's bytes, hashed in chunks so that it need not fit into memory."""
        path = self.folder.local_path(part.uri)
        if path is None:
            path = folder / f"{part.sha256}.parquet"
            if not path.exists() and not self.folder.download(part.uri, path):
                raise self._corrupt_part(part, None)
        try:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError as error:
            raise self._corrupt_part(part, None) from error
        if found != part.sha256:
            raise self._corrupt_part(part, found)
        return path

    def _corrupt_part(self, part: Part, found: str | None) -> CorruptArtifact:
        return self._corrupt(
            part.uri, expected=f"sha256 {part.sha256}", found="no file" if found is None else f"sha256 {found}"
        )

    def _corrupt(self, uri: str, *, expected: str, found: str) -> CorruptArtifact:
        return CorruptArtifact(
            f"{self.folder.location(uri)}: expected {expected}, found {found}; "
            "materialise the asset that published it again, or restore the file from a backup"
        )


def _manifest_folder(asset: str, partition: str | None) -> str:
    return f"manifests/{path_name(asset)}/{_UNPARTITIONED if partition is None else path_name(partition)}"


def _document_uri(name: str) -> str:
    return f"documents/{'/'.join(path_name(component) for component in name.removesuffix('.json').split('/'))}.json"


def _schema_of(manifest: Manifest) -> pl.Schema:
    """Return the Polars schema that the manifest wrote down as text."""
    if unknown := sorted(set(manifest.columns.values()) - _DTYPES.keys()):
        message = f"the table {manifest.table} has columns of type {', '.join(unknown)}; known are {', '.join(_DTYPES)}"
        raise InvalidInput(message)
    return pl.Schema({name: _DTYPES[dtype] for name, dtype in manifest.columns.items()})


def _refuse_non_finite(table: Table, frame: pl.DataFrame) -> None:
    """A NaN would hash like a missing value, and would pass `value > limit` as one does not."""
    finite = frame.select(cs.float().is_finite().all())
    if broken := [name for name in finite.columns if not finite[name].item()]:
        message = f"{table.name}.{', '.join(broken)} holds NaN or infinity; write NULL for what was not measured"
        raise InvalidInput(message)


def _duckdb_settings(spill: Path) -> dict[str, str | bool | int | float | list[str]]:
    """Spill beside nothing of ours, fetch no extension, and see no Python variable as a table."""
    return {
        "temp_directory": str(spill),
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "python_enable_replacements": False,
    }
