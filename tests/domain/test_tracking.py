"""A step record identifies its step, says what was not measured, and fits MLflow without losing anything."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anven_pipelines.domain.tracking import (
    MAX_NAME_CHARS,
    MAX_VALUE_CHARS,
    StepRecord,
    fit,
    legal_name,
    legal_names,
    step_key,
    step_tags,
)

STEP = StepRecord(
    key="run-1/scores/support",
    experiment="anven/support",
    name="scores",
    started=datetime(2026, 3, 1, 12, 0, 0, 250_000, tzinfo=UTC),
    ended=datetime(2026, 3, 1, 12, 5, tzinfo=UTC),
    status="FINISHED",
    tags=step_tags(run_id="run-1", asset="scores", workload="support", dataset_digest="d1"),
    params={"level": 0.05, "seed": 7, "sealed": True, "model": "small"},
    metrics={"quality": 0.75, "items": 200},
    documents={"reports/scorecard.json": "{}"},
)

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
moments = st.datetimes(min_value=datetime(1990, 1, 1), max_value=datetime(2090, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - hypothesis adds the zone
records = st.builds(
    StepRecord,
    key=texts.filter(lambda text: text and "'" not in text),
    experiment=texts,
    name=texts,
    started=moments,
    ended=moments,
    status=st.sampled_from(["FINISHED", "FAILED"]),
    tags=st.dictionaries(texts, texts, max_size=4),
    params=st.dictionaries(
        texts, st.one_of(texts, st.integers(-(2**53), 2**53), st.floats(), st.booleans()), max_size=4
    ),
    metrics=st.dictionaries(texts, st.one_of(st.none(), st.floats()), max_size=4),
    documents=st.dictionaries(texts.map(legal_name), texts, max_size=4),
)


@given(records)
def test_a_record_survives_its_text_form(record: StepRecord) -> None:
    again = StepRecord.from_json(record.to_json())
    assert again == record
    assert again.to_json() == record.to_json()
    assert again.digest == record.digest


def test_parameters_keep_their_types() -> None:
    again = StepRecord.from_json(STEP.to_json())
    assert {name: type(value) for name, value in again.params.items()} == {
        "level": float,
        "seed": int,
        "sealed": bool,
        "model": str,
    }


def test_the_same_moment_in_another_zone_is_the_same_record() -> None:
    moved = replace(STEP, started=STEP.started.astimezone(timezone(timedelta(hours=5))))
    assert moved.digest == STEP.digest


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"key": ""}, "key"),
        ({"key": "run-1/it's"}, "without '"),
        ({"started": datetime(2026, 3, 1)}, "no time zone"),  # noqa: DTZ001 - that is what is refused
        ({"ended": datetime(2026, 3, 1)}, "no time zone"),  # noqa: DTZ001 - that is what is refused
        ({"documents": {"/etc/passwd": ""}}, "a relative path"),
        ({"documents": {"../above.txt": ""}}, "a relative path"),
        ({"documents": {"": ""}}, "a relative path"),
    ],
)
def test_a_record_that_identifies_nothing_is_refused(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        replace(STEP, **change)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        STEP.to_json()[:-1],
        STEP.to_json().replace("FINISHED", "DONE"),
        STEP.to_json().replace('"quality":0.75', '"quality":"high"'),
        STEP.to_json().replace("2026-03-01T12:05:00+00:00", "2026-03-01T12:05:00"),
    ],
)
def test_a_text_that_is_no_record_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="validation error"):
        StepRecord.from_json(text)


@pytest.mark.parametrize(
    ("value", "why"),
    [(None, "not measured"), (math.nan, "not a number"), (math.inf, "infinite"), (-math.inf, "infinite")],
)
def test_what_was_not_measured_is_said_and_is_no_number(value: float | None, why: str) -> None:
    record = replace(STEP, metrics={"quality": 0.75, "ttft_ms": value})
    assert record.metrics == {"quality": 0.75}
    assert record.tags["unmeasured.ttft_ms"] == why


def test_zero_is_a_measurement() -> None:
    record = replace(STEP, metrics={"lost": 0})
    assert record.metrics == {"lost": 0.0}
    assert not [name for name in record.tags if name.startswith("unmeasured")]


def test_numpy_values_and_broken_text_become_what_json_holds() -> None:
    record = replace(
        STEP,
        params={"n": np.int64(5), "share": np.float64(0.25), "limit": math.inf, "text": "a\0b\ud800"},  # type: ignore[dict-item]
        metrics={"quality": np.float64(0.5)},
    )
    assert record.params == {"n": "5", "share": 0.25, "limit": "inf", "text": "a�b?"}
    assert StepRecord.from_json(record.to_json()) == record


def test_keys_tell_steps_apart() -> None:
    keys = [
        step_key(run_id="r", asset="scores"),
        step_key(run_id="r", asset="scores", partition="support"),
        step_key(run_id="r", asset="scores", partition="support", attempt=1),
        step_key(run_id="r", asset="golden", partition="support"),
        step_key(run_id="s", asset="scores", partition="support"),
    ]
    assert keys[2] == "r/scores/support/retry-1"
    assert len(set(keys)) == len(keys)


def test_a_tag_that_a_step_does_not_have_is_left_out() -> None:
    assert step_tags(run_id="r", asset="price_book") == {"dagster.run_id": "r", "asset": "price_book"}


def test_what_fits_is_stored_as_it_is() -> None:
    fitted = fit(STEP)
    assert fitted.tags == STEP.tags
    assert fitted.params == {"level": "0.05", "seed": "7", "sealed": "true", "model": "small"}
    assert fitted.metrics == STEP.metrics
    assert fitted.documents == STEP.documents


@pytest.mark.parametrize("kind", ["params", "tags"])
def test_a_value_that_is_too_long_is_cut_with_a_mark_and_kept_whole_in_a_document(kind: str) -> None:
    prompt = "word " * 2000
    change: dict[str, Any] = {kind: {"prompt": prompt, "edge": "x" * MAX_VALUE_CHARS}}
    fitted = fit(replace(STEP, **change))
    values: dict[str, str] = getattr(fitted, kind)
    assert values["edge"] == "x" * MAX_VALUE_CHARS
    assert len(values["prompt"]) == MAX_VALUE_CHARS
    assert values["prompt"].endswith(f"[cut: 10000 characters, whole in tracking/{kind}/prompt.txt]")
    assert fitted.documents[f"tracking/{kind}/prompt.txt"] == prompt


def test_a_name_that_mlflow_refuses_is_replaced_and_the_document_says_by_what() -> None:
    fitted = fit(replace(STEP, metrics={"p95 (ms)": 1.0, "p95 <ms>": 2.0, "p95 _ms_": 3.0}))
    assert sorted(fitted.metrics.values()) == [1.0, 2.0, 3.0]
    assert fitted.metrics["p95 _ms_"] == 3.0
    renamed = json.loads(fitted.documents["tracking/renamed.json"])["metrics"]
    assert {original: fitted.metrics[legal] for legal, original in renamed.items()} == {
        "p95 (ms)": 1.0,
        "p95 <ms>": 2.0,
    }


@pytest.mark.parametrize(
    ("name", "legal"),
    [
        ("quality/math.mean", "quality/math.mean"),
        ("größe", "gr__e"),
        ("/absolute", "_/absolute"),
        ("a//b/./../c/", "a/_/b/_/_/c/_"),
        ("..hidden", "__hidden"),
        ("line\n", "line_"),
        ("", "_"),
        (".", "_"),
    ],
)
def test_names_become_normal_relative_paths_of_plain_characters(name: str, legal: str) -> None:
    assert legal_name(name) == legal


@given(
    st.sets(
        st.text(st.sampled_from("ab./_+ :\n é"), max_size=12) | st.text(st.sampled_from("./a+"), max_size=300),
        max_size=8,
    )
)
def test_no_two_names_become_one(names: set[str]) -> None:
    legal = legal_names(names)
    assert legal.keys() == names
    assert len(set(legal.values())) == len(names)
    assert all(0 < len(name) <= MAX_NAME_CHARS for name in legal.values())
    assert legal_names(legal.values()) == {name: name for name in legal.values()}
