from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from anven_pipelines.domain.errors import UnreadableSource
from anven_pipelines.domain.request_log import LineCount

if TYPE_CHECKING:
    from collections.abc import Callable

    from anven_pipelines.ingest.readers import LogBatch

RECORD: dict[str, Any] = {
    "session_id": "gsm-#0",
    "chat_history": ["How many eggs?"],
    "model_input": "n/a",
    "output": ['{"answer": "18"}'],
    "generator": "openai/gpt-4o-2024-05-13",
    "configs": {"engine": "openai", "temperature": 0.0, "max_tokens": 4096},
    "dataset": "gsm",
    "id": "gsm-#0",
    "question": "How many eggs?",
    "answer": "# 18",
    "source": "openai/gsm8k",
    "config": "main",
    "task_type": "qa",
}


def array(*changes: dict[str, Any]) -> bytes:
    return json.dumps([RECORD | change for change in changes], indent=2).encode()


def test_a_record_becomes_a_row_and_what_it_lacks_is_null(read: Callable[..., LogBatch]) -> None:
    batch = read(array({}), "zeroeval")
    assert batch.count == LineCount(1, 1, 0, 0)
    row = batch.rows.row(0, named=True)
    assert {name: value for name, value in row.items() if value is not None} == {
        "request_id": "gsm-#0",
        "application": "gsm",
        "provider": "openai",
        "model": "gpt-4o-2024-05-13",
        "messages": '[{"content":"How many eggs?","role":"user"}]',
        "params": '{"max_tokens":4096,"temperature":0.0}',
        "output": '{"answer": "18"}',
        "status": "ok",
        "ground_truth": "18",
        "tags": '{"config":"main","engine":"openai","source":"openai/gsm8k","task":"qa"}',
        "source_file": "log.jsonl",
        "source_line": 1,
    }


CASES: list[tuple[dict[str, Any], str, object]] = [
    ({"session_id": None}, "request_id", "gsm-#0"),
    ({"chat_history": ["Q1", "A1", "Q2"]}, "messages", json.dumps(
        [{"content": "Q1", "role": "user"}, {"content": "A1", "role": "assistant"}, {"content": "Q2", "role": "user"}],
        separators=(",", ":"),
    )),
    ({"generator": "gpt-4o"}, "provider", None),
    ({"generator": "gpt-4o"}, "model", "gpt-4o"),
    ({"generator": "org/team/model"}, "model", "team/model"),
    ({"answer": "#### 1,000"}, "ground_truth", "1,000"),
    ({"answer": 18}, "ground_truth", "18"),
    ({"answer": "C# is a language"}, "ground_truth", "C# is a language"),
    ({"answer": None}, "ground_truth", None),
    ({"output": "as text"}, "output", "as text"),
    ({"output": []}, "status", "unanswered"),
    ({"output": [None]}, "status", "unanswered"),
    ({"output": None}, "output", None),
    ({"task_type": None}, "tags", '{"config":"main","engine":"openai","source":"openai/gsm8k"}'),
    ({"configs": None}, "params", None),
]  # fmt: skip


@pytest.fixture(scope="module")
def table(read: Callable[..., LogBatch]) -> LogBatch:
    return read(array(*({"n": number} | change for number, (change, _, _) in enumerate(CASES))), "zeroeval")


@pytest.mark.parametrize(("element", "column", "value"), [(n, *case[1:]) for n, case in enumerate(CASES, start=1)])
def test_a_record_may_lack_or_vary_a_field(table: LogBatch, element: int, column: str, value: object) -> None:
    (row,) = table.rows.filter(source_line=element).rows(named=True)
    assert row[column] == value


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"chat_history": None}, "chat_history is missing; a list of texts is needed"),
        ({"chat_history": "Q"}, "chat_history is text; a list of texts is needed"),
        ({"chat_history": ["Q", 7, "Q"]}, "chat_history holds a turn that is not text; a list of texts is needed"),
        (
            {"chat_history": ["Q", "A"]},
            "chat_history has 2 turns; an odd number is needed, so that the last is the user's",
        ),
        ({"chat_history": []}, "chat_history has 0 turns; an odd number is needed, so that the last is the user's"),
        ({"output": {"text": "A"}}, "output is an object; a list with one text is needed"),
        ({"output": [7]}, "output is 7; text is needed"),
        ({"generator": 7}, "generator is 7; text is needed"),
        ({"dataset": ["gsm"]}, "dataset is a list; text is needed"),
        ({"configs": "greedy"}, "configs is text; an object is needed"),
    ],
)
def test_a_bad_record_is_quarantined_alone(read: Callable[..., LogBatch], change: dict[str, Any], reason: str) -> None:
    batch = read(array({"id": 1}, change, {"id": 3}), "zeroeval")
    assert batch.count == LineCount(3, 2, 1, 0)
    assert batch.rejected.select("source_line", "reason").rows() == [(2, reason)]
    assert json.loads(batch.rejected.item(0, "raw")) == RECORD | change


@pytest.mark.parametrize("element", [b"7", b'"text"', b"[]", b'{"a": NaN}', b'{"a": "\\ud800"}', b'{"a": "\xff"}'])
def test_an_element_that_is_no_object_is_quarantined_alone(read: Callable[..., LogBatch], element: bytes) -> None:
    batch = read(array({})[:-1] + b"," + element + b"]", "zeroeval")
    assert batch.count == LineCount(2, 1, 1, 0)
    assert batch.rejected.item(0, "raw") == element


def test_records_before_a_break_are_kept(read: Callable[..., LogBatch]) -> None:
    batch = read(array({"id": 1}, {"id": 2})[:-20], "zeroeval")
    assert batch.count == LineCount(2, 1, 1, 0)
    assert "the JSON array breaks here" in batch.rejected.item(0, "reason")


def test_a_file_that_is_no_array_is_refused(read: Callable[..., LogBatch]) -> None:
    with pytest.raises(UnreadableSource, match="a JSON array of records is needed"):
        read(json.dumps(RECORD).encode(), "zeroeval")
