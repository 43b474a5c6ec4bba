"""The forms in which a golden dataset leaves for other tools and comes in from them.

Every form carries GOLDEN's columns by their names, so that what was exported can be imported unchanged.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import polars as pl

from anven_pipelines.domain.candidates import stratum_of
from anven_pipelines.domain.canonical import canonical_json
from anven_pipelines.domain.draw import sealed
from anven_pipelines.domain.errors import InvalidInput
from anven_pipelines.domain.evaluation import STRATA, TRAFFIC
from anven_pipelines.domain.golden import GOLDEN, NOTHING_SEEN, named_in, sealed_beside

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from anven_pipelines.domain.holdout import Seen
    from anven_pipelines.spec import Golden

SPLITS: Final = ("open", "sealed")
ROLES: Final = (TRAFFIC, "edge_case", "adversarial")
_JSON: Final[Mapping[str, type]] = {
    "source_prompt": list,
    "input_context": object,
    "model_config": dict,
    "tool_calls": list,
}
_SCORES: Final = ("automated_score", "human_score")
_INPUTS: Final = ("id", "source_prompt", "input_context", "model_config")
_OUTPUTS: Final = ("source_output", "tool_calls", "finish_reason")
_TRUTH: Final = "expected_response"  # the name that MLflow's own scorers read
_SHOWN: Final = 5
_NOT_NEGATIVE: Final = "a finite number of at least 0 is needed"


class Record(NamedTuple):
    """One row as it was read, and where it stood."""

    line: int
    fields: Any


def json_records(text: str) -> list[Record]:
    """Read JSON lines; one that is no JSON has no fields. Only a line feed ends a line: JSON text may hold others."""
    return [Record(at, _parsed(line)) for at, line in enumerate(text.split("\n"), start=1) if line.strip()]


def imported_rows(records: Iterable[Record], golden: Golden, *, seen: Seen = NOTHING_SEEN) -> pl.DataFrame:
    """Return GOLDEN rows, sorted by id, from rows made elsewhere.

    Needed are `id`, `source_prompt` and `source_output` or `tool_calls`; JSON columns may be JSON text or plain JSON.
    Where no row says its split, whole clusters are sealed as a draw seals them.

    Args:
        records: Rows with the names of GOLDEN's columns.
        golden: Share, strata and seed of the choice which clusters are sealed.
        seen: Ids and clusters that may not be sealed by that choice.

    Raises:
        InvalidInput: a row is no golden item; each is named by line and reason, and nothing is taken over.
    """
    read = list(records)
    ids = Counter(str(record.fields.get("id")) for record in read if isinstance(record.fields, dict))
    told = splits_are_told(read)
    rows, problems = [], []
    for record in read:  # each row is checked on its own, so that each can be told
        try:
            rows.append(_row(record.fields, ids, split_is_told=told))
        except ValueError as error:
            problems.append(f"line {record.line}: {error}")
    if problems or not rows:
        shown = "; ".join(problems[:_SHOWN]) or "the file holds none"
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        message = f"{len(problems)} of {len(read)} rows are no golden items ({shown}{more}); nothing was imported"
        raise InvalidInput(message)
    frame = GOLDEN.conform(pl.DataFrame(rows, infer_schema_length=None)).sort("id")
    return frame if told else _sealed(frame, golden, seen)


def splits_are_told(records: Iterable[Record]) -> bool:
    """Say whether any row names its split."""
    return any(record.fields.get("split") for record in records if isinstance(record.fields, dict))


def jsonl(rows: pl.DataFrame) -> str:
    """Write rows as canonical JSON lines."""
    return "".join(canonical_json(row) + "\n" for row in rows.iter_rows(named=True))


def dataset_card(workload: str, digest: str, rows: pl.DataFrame) -> str:
    """Write the README.md of a Hugging Face dataset folder with `data/<split>.parquet`."""
    present = [split for split in SPLITS if split in set(rows["split"])]
    files = "\n".join(f"  - split: {split}\n    path: data/{split}.parquet" for split in present)
    counts = ", ".join(f"{rows.filter(pl.col('split') == split).height:,} {split}" for split in present)
    columns = "\n".join(f"| `{column.name}` | {column.description} |" for column in GOLDEN.columns)
    return f"""\
---
pretty_name: Golden dataset of {workload}
configs:
- config_name: default
  data_files:
{files}
---
# Golden dataset of {workload}

Frozen version `{digest}`: {counts} items. A verdict rests on the sealed items only; once they were read, they can
judge no new prompt, model or limit.

| column | meaning |
|---|---|
{columns}
"""


def mlflow_records(rows: pl.DataFrame) -> list[dict[str, Any]]:
    """Return rows as records of an MLflow evaluation dataset.

    MLflow merges records of equal inputs, so the id stands among them. What has no place of its own is a tag.
    """
    return [
        {
            "inputs": {name: row[name] for name in _INPUTS},
            "outputs": {name: row[name] for name in _OUTPUTS},
            "expectations": {} if row["ground_truth"] is None else {_TRUTH: row["ground_truth"]},
            "tags": {name: json.dumps(row[name]) for name in _tagged() if row[name] is not None},
        }
        for row in rows.iter_rows(named=True)
    ]


def of_mlflow(records: Iterable[Mapping[str, Any]]) -> list[Record]:
    """Return the rows of an MLflow evaluation dataset that `mlflow_records` made."""
    return [
        Record(
            at,
            {
                **record["inputs"],
                **(record.get("outputs") or {}),
                "ground_truth": (record.get("expectations") or {}).get(_TRUTH),
                **{name: json.loads(text) for name, text in (record.get("tags") or {}).items() if name in _tagged()},
            },
        )
        for at, record in enumerate(records, start=1)
    ]


def _tagged() -> list[str]:
    return [each.name for each in GOLDEN.columns if each.name not in (*_INPUTS, *_OUTPUTS, "ground_truth")]


def _row(fields: Any, ids: Mapping[str, int], *, split_is_told: bool) -> dict[str, Any]:  # noqa: ANN401 - as it was read
    """Check one row and fill in what it may leave out.

    Raises:
        ValueError: says what was found and what is needed.
    """
    if not isinstance(fields, dict):
        message = "no JSON object"
        raise ValueError(message)  # noqa: TRY004 - one kind for all that is wrong with a row
    if unknown := sorted(fields.keys() - GOLDEN.schema.keys()):
        message = f"unknown fields {', '.join(unknown)}; known are {', '.join(GOLDEN.schema)}"
        raise ValueError(message)
    row = {name: _value(name, value) for name, value in fields.items() if value is not None}
    for name in ("id", "source_prompt"):
        if not row.get(name):
            message = f"{name} is missing"
            raise ValueError(message)
    if ids[row["id"]] > 1:
        message = f"id {row['id']!r} stands {ids[row['id']]} times"
        raise ValueError(message)
    if not row.get("source_output") and row.get("tool_calls", "[]") == "[]":
        message = "source_output is missing, and so are tool_calls"
        raise ValueError(message)
    if split_is_told and row.get("split") not in SPLITS:
        message = f"split is {row.get('split')!r}; open or sealed is needed in every row, or in none"
        raise ValueError(message)
    # What says nothing else is one call of the traffic.
    role = row.get("role", TRAFFIC)
    defaults = dict.fromkeys(STRATA, "unknown") | {"weight": float(role == TRAFFIC), "role": role}
    filled = {"cluster": row["id"], **defaults, **row}
    _require_consistent(filled)
    return filled


def _require_consistent(row: Mapping[str, Any]) -> None:
    """Refuse values that the verdict's estimate would stumble over.

    Raises:
        ValueError: says what was found and what is needed.
    """
    if row["role"] not in ROLES:
        message = f"role is {row['role']!r}; {', '.join(ROLES)} are known"
        raise ValueError(message)
    if not row["cluster"].strip():
        message = "cluster is empty; name the conversation, or leave the field out"
        raise ValueError(message)
    if (row["weight"] > 0) != (row["role"] == TRAFFIC):
        needed = (
            "traffic stands for calls, so more than 0" if row["role"] == TRAFFIC else "it stands for no traffic, so 0"
        )
        message = f"weight is {row['weight']!r} and role {row['role']}: {needed} is needed"
        raise ValueError(message)


def _value(name: str, value: Any) -> Any:  # noqa: ANN401 - as it was read
    """Return a field's value in its column's type."""
    dtype = GOLDEN.schema[name]
    if name in _JSON:
        return _json_text(name, value)
    if dtype == pl.String:
        if isinstance(value, str):
            return value
        message = f"{name} is {value!r}; text is needed"
        raise ValueError(message)
    whole = dtype == pl.Int64
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        message = f"{name} is {value!r}; a {'whole ' if whole else ''}number is needed"
        raise ValueError(message)  # noqa: TRY004 - see `_row`
    if not math.isfinite(value) or value < 0 or (name in _SCORES and value > 1):
        message = f"{name} is {value!r}; {'a score from 0 to 1 is needed' if name in _SCORES else _NOT_NEGATIVE}"
        raise ValueError(message)
    return value if whole else float(value)


def _json_text(name: str, value: Any) -> str:  # noqa: ANN401 - as it was read
    """Return canonical JSON text, so that neither digests nor joins depend on white space or the order of keys."""
    parsed = _parsed(value) if isinstance(value, str) else value
    if parsed is None or not isinstance(parsed, _JSON[name]):
        kinds: dict[type, str] = {list: "a JSON list", dict: "a JSON object"}
        kind = kinds.get(_JSON[name], "JSON")
        message = f"{name} is {str(value)[:60]!r}; {kind} is needed"
        raise ValueError(message)
    return canonical_json(parsed)


def _parsed(text: str) -> Any:  # noqa: ANN401 - JSON is of any type
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return None


def _refuse_constant(constant: str) -> None:
    message = f"{constant} is no JSON"
    raise ValueError(message)


def _sealed(rows: pl.DataFrame, golden: Golden, seen: Seen) -> pl.DataFrame:
    """Seal as a draw does: whole clusters, by stratum and role, and nothing that was seen."""
    ranks = [sha256(f"{golden.seed}:seal:{cluster}".encode()).hexdigest() for cluster in rows["cluster"]]
    marked = rows.with_columns(
        stratum_of(golden.strata),
        seal_key=pl.Series(ranks, dtype=pl.String),
        calls=pl.lit(1, pl.Int64),
        burnt=named_in(seen.burnt).any().over("cluster"),
        seen=named_in(seen.burnt | seen.shown).any().over("cluster"),
    )
    is_traffic = pl.col("role") == TRAFFIC
    traffic = sealed(marked.filter(is_traffic), golden.holdout)
    extra = sealed_beside(marked.filter(~is_traffic), traffic, golden.holdout)
    return GOLDEN.conform(pl.concat([traffic, extra], how="diagonal")).sort("id")
