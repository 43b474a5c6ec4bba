"""Described tables: one place for a table's columns, types and their meaning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

if TYPE_CHECKING:
    from collections.abc import Mapping

UTC_TIMESTAMP = pl.Datetime("us", "UTC")


@dataclass(frozen=True)
class Column:
    """A column's name, type and meaning."""

    name: str
    dtype: pl.DataType | type[pl.DataType]
    description: str


@dataclass(frozen=True)
class Table:
    """A named, ordered set of described columns."""

    name: str
    columns: tuple[Column, ...]

    @property
    def schema(self) -> pl.Schema:
        """The Polars schema."""
        return pl.Schema({column.name: column.dtype for column in self.columns})

    def conform(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Return the frame with exactly this table's columns, order and types.

        A column the frame lacks becomes NULL: missing is never invented.

        Raises:
            polars.exceptions.InvalidOperationError: a value does not fit its column's type.
        """
        present: Mapping[str, object] = frame.schema
        return frame.select(
            (pl.col(column.name) if column.name in present else pl.lit(None)).cast(column.dtype).alias(column.name)
            for column in self.columns
        )

    def empty(self) -> pl.DataFrame:
        """Return the table without rows."""
        return pl.DataFrame(schema=self.schema)
