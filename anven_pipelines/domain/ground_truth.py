"""Where the right answers come from, and which verdicts rest on answers that are right no longer.

A truth file holds one object a line, `{"id": ..., "ground_truth": ...}`, or a CSV table with these two columns; `id` is
the request id of the logged call. Labels are events of the stream `labels/<workload>`: kind `labelled`, payload
`{"id", "ground_truth", "by", "note"}`, of which each person's latest counts.
"""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import polars as pl

from anven_pipelines.domain.canonical import digest_of_rows
from anven_pipelines.domain.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from anven_pipelines.domain.events import Event

LABELLED: Final = "labelled"
_SCHEMA: Final = pl.Schema({"id": pl.String, "ground_truth": pl.String})
_SHOWN: Final = 5


class Truths(NamedTuple):
    """Right answers by request id.

    Attributes:
        rows: Columns id, ground_truth; sorted, each id once.
        disputed: Ids on which people disagree; they have no truth.
    """

    rows: pl.DataFrame
    disputed: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256 over the rows."""
        return digest_of_rows(self.rows)


def labels_stream(workload: str) -> str:
    """Return the state stream of a workload's labels."""
    return f"labels/{workload}"


def read_truths(text: str, *, name: str) -> Truths:
    """Read a truth file.

    Args:
        text: JSON lines, or CSV with a header where the name ends in `.csv`.
        name: Name of the file, for the errors.

    Raises:
        InvalidInput: lines are no truth or give an id a second one; each is named, the first few with their reason.
    """
    found: dict[str, str] = {}
    problems: list[str] = []
    for line, record in _csv_records(text) if name.endswith(".csv") else _json_records(text):
        item, truth = (record.get("id"), record.get("ground_truth")) if isinstance(record, dict) else (None, None)
        if not isinstance(item, str) or not item or not isinstance(truth, str) or not truth.strip():
            problems.append(f"line {line}: id and ground_truth are needed, both as text that is not empty")
        elif found.setdefault(item, truth) != truth:
            problems.append(f"line {line}: id {item!r} has another ground_truth above")
    if problems or not found:
        shown = "; ".join(problems[:_SHOWN]) or "the file holds none"
        message = f"{name}: {len(problems)} lines are no ground truth ({shown}); mend them, nothing was taken over"
        raise InvalidInput(message)
    return _truths(found)


def agreed_labels(labels: Iterable[Event]) -> Truths:
    """Return what people agree on: each one's latest label counts, and an item on which they differ has no truth."""
    latest = {(event.payload["id"], event.payload["by"]): event.payload["ground_truth"] for event in labels}
    said: dict[str, set[str]] = {}
    for (item, _), truth in latest.items():
        said.setdefault(item, set()).add(truth)
    agreed = {item: truths.copy().pop() for item, truths in said.items() if len(truths) == 1}
    return _truths(agreed)._replace(disputed=tuple(sorted(said.keys() - agreed.keys())))


def with_truths(calls: pl.DataFrame, truths: Truths) -> pl.DataFrame:
    """Put the truths in place of what the log says; a call without one has none.

    Raises:
        InvalidInput: there is no truth, or none belongs to a logged call.
    """
    if truths.rows.is_empty():
        message = (
            f"there is no ground truth yet, and people disagree on {len(truths.disputed)} items; add labels, or set "
            "golden.ground_truth.source to log or file"
        )
        raise InvalidInput(message)
    joined = calls.drop("ground_truth").join(
        truths.rows, left_on="request_id", right_on="id", how="left", maintain_order="left"
    )
    if joined["ground_truth"].null_count() == joined.height:
        example = ", ".join(truths.rows["id"].head(3))
        message = (
            f"none of the {truths.rows.height} ground truths ({example}, ...) has the request id of a logged call; "
            "their ids must be the request_id of the calls"
        )
        raise InvalidInput(message)
    return joined.select(calls.columns)


def changed_truths(signed: pl.DataFrame, current: pl.DataFrame) -> list[str]:
    """Return the ids of items that stand in both versions with different truths.

    Args:
        signed: GOLDEN rows that a verdict rests on.
        current: GOLDEN rows as they are now.
    """
    both = signed.select("id", "ground_truth").join(current.select("id", now="ground_truth"), on="id")
    return both.filter(pl.col("ground_truth").ne_missing(pl.col("now")))["id"].sort().to_list()


def explain_stale_verdict(verdict: Event, changed: Sequence[str]) -> str | None:
    """Say that a verdict rests on truths that have changed since; None where none has."""
    if not changed:
        return None
    shown = ", ".join(changed[:_SHOWN]) + (", ..." if len(changed) > _SHOWN else "")
    signed = verdict.payload
    return (
        f"the verdict {signed['verdict']} of {verdict.ts_text[:10]} (run {signed['run'][:8]}) is stale: the ground"
        f" truth of {len(changed)} of its items has changed since ({shown}); sign off again"
    )


def _truths(found: dict[str, str]) -> Truths:
    return Truths(pl.DataFrame(sorted(found.items()), schema=_SCHEMA, orient="row"))


def _json_records(text: str) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except ValueError:
                yield number, None


def _csv_records(text: str) -> Iterator[tuple[int, Any]]:
    reader = csv.DictReader(io.StringIO(text))
    for record in reader:
        yield reader.line_num, record
