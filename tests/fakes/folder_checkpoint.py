"""Small real implementations of what tests need in place of an external system."""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import polars as pl

from anven_pipelines.domain.inference import ANSWERS

if TYPE_CHECKING:
    from pathlib import Path


@dataclass
class FolderCheckpoint:
    """Keeps ANSWERS rows in a local folder, one fsynced Parquet file per part; `parts` are the sizes it was given."""

    folder: Path
    parts: list[int] = field(default_factory=list)

    def load(self) -> pl.DataFrame:
        """Return every row that is durable."""
        frames = [pl.read_parquet(path) for path in sorted(self.folder.glob("*.parquet"))]
        return pl.concat([ANSWERS.empty(), *frames])

    def append(self, frame: pl.DataFrame) -> None:
        """Keep the rows: the file gets its name once its bytes are on the disk."""
        self.folder.mkdir(parents=True, exist_ok=True)
        name = uuid.uuid4().hex
        partial = self.folder / f"{name}.partial"
        with partial.open("wb") as file:
            frame.write_parquet(file)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(self.folder / f"{name}.parquet")
        self.parts.append(frame.height)
