"""Reads the file of ground truths that a migration file names."""

from __future__ import annotations

import fsspec

from anven_pipelines.domain.errors import InvalidInput
from anven_pipelines.domain.ground_truth import Truths, read_truths
from anven_pipelines.ingest.sources import list_files, reading


def read_truth_file(path: str, *, base: str) -> Truths:
    """Read one file, at a path or an fsspec URL; a relative path starts at `base`.

    Raises:
        InvalidInput: the path names several files, or a line is no ground truth.
        UnreadableSource: it names none, or cannot be read as UTF-8.
    """
    files = list_files([path], base=base)
    if len(files) > 1:
        message = f"golden.ground_truth.file is {path!r}, which names {len(files)} files; one is needed"
        raise InvalidInput(message)
    with reading(files[0].name, files[0].url), fsspec.open(files[0].url, "rt", encoding="utf-8") as file:
        text = file.read()
    return read_truths(text, name=files[0].name)
