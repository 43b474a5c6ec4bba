"""What assets pass to each other: where rows are and what they are, never the rows."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from anven_pipelines.domain.canonical import digest_of
from anven_pipelines.domain.errors import StaleInput


class Part(BaseModel):
    """One immutable Parquet file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    uri: str = Field(description="Where the bytes are, relative to the artifact store's root.")
    sha256: str = Field(description="SHA-256 of the Parquet bytes; checked when read.")
    rows_digest: str = Field(description="SHA-256 of schema and rows; the same whoever wrote the Parquet.")
    rows: int = Field(ge=0)
    bytes: int = Field(ge=0)
    labels: dict[str, str] = Field(default_factory=dict, description="Such as the source file of a log part.")


class Manifest(BaseModel):
    """A published table: its parts, its schema, what it was made from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    table: str
    columns: dict[str, str] = Field(description="Column name to Polars type, in order.")
    parts: tuple[Part, ...]
    inputs: dict[str, str] = Field(default_factory=dict, description="Upstream asset to the digest it had.")
    facts: dict[str, Any] = Field(default_factory=dict, description="Small JSON facts that belong to the digest.")

    @property
    def rows(self) -> int:
        """Rows over all parts."""
        return sum(part.rows for part in self.parts)

    @property
    def digest(self) -> str:
        """SHA-256 over table, schema, row digests and facts: equal content, equal digest, wherever it lies."""
        return digest_of(
            {
                "table": self.table,
                "columns": list(self.columns.items()),
                "parts": [[part.rows_digest, part.labels] for part in self.parts],
                "facts": self.facts,
            }
        )


def require_same(name: str, *manifests: Manifest, current: Manifest | None = None) -> None:
    """Refuse inputs that were made from different versions of the upstream `name`, or not from its current one.

    Raises:
        StaleInput: they were; a verdict over mixed versions would compare different questions.
    """
    digests = {manifest.table: manifest.inputs[name] for manifest in manifests}
    if current is not None:
        digests[f"current {name}"] = current.digest
    if len(set(digests.values())) > 1:
        found = ", ".join(f"{table}: {digest[:12]}" for table, digest in digests.items())
        message = f"the inputs rest on different versions of {name} ({found}); materialise again from {name} on"
        raise StaleInput(message)
