"""A checkpoint that is read once knows every row that this process appended, whichever thread did."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from anven_pipelines.domain.inference import ANSWERS
from anven_pipelines.resources.artifact_store import ArtifactStore
from anven_pipelines.resources.checkpoint import Checkpoint, Remembered
from tests.builders import answers_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import polars as pl


@pytest.fixture
def busy_threads() -> Iterator[None]:
    """Change threads as often as can be."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def row(name: str) -> pl.DataFrame:
    return answers_of(["an answer"], item_id=[name])


def stored(folder: Path) -> Checkpoint:
    return ArtifactStore(url=str(folder)).checkpoint(ANSWERS, "key")


@pytest.mark.usefixtures("busy_threads")
def test_rows_that_several_threads_append_are_all_remembered(tmp_path: Path) -> None:
    kept = Remembered(stored(tmp_path))
    names = [f"item-{at:03d}" for at in range(200)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: kept.append(row(name)), names))
    assert set(kept.load()["item_id"]) == set(names)


def test_what_was_kept_before_is_read_once(tmp_path: Path) -> None:
    stored(tmp_path).append(row("earlier"))
    kept = Remembered(stored(tmp_path))
    kept.append(row("now"))
    stored(tmp_path).append(row("of another process"))
    assert set(kept.load()["item_id"]) == {"earlier", "now"}
