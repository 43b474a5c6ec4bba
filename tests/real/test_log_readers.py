"""The log readers on recordings that nobody here made."""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from anven_pipelines.domain.request_log import LineCount
from anven_pipelines.ingest.readers import LogBatch, read_logs
from anven_pipelines.ingest.sources import list_files

if TYPE_CHECKING:
    from anven_pipelines.spec_values import LogFormat

pytestmark = pytest.mark.real

DATA = Path(__file__).parents[2].parent / "shared" / "data"


def read(pattern: str, log_format: LogFormat) -> LogBatch:
    batches = list(read_logs(list_files([pattern], base=str(DATA)), log_format=log_format))
    rows, rejected, counts = zip(*batches, strict=True)
    return LogBatch(pl.concat(rows), pl.concat(rejected), sum(counts, LineCount()))


@pytest.mark.parametrize(
    ("name", "provider"),
    [
        ("gpt-4o-2024-05-13", "openai"),
        ("gpt-3.5-turbo-0125", "openai"),
        ("Meta-Llama-3.1-70B-Instruct", "meta-llama"),
        ("Meta-Llama-3.1-8B-Instruct", "meta-llama"),
    ],
)
def test_every_zeroeval_record_is_a_row(name: str, provider: str) -> None:
    batch = read(f"zeroeval_gsm/{name}.json.gz", "zeroeval")
    assert batch.count == LineCount(1319, 1319, 0, 0)
    rows = batch.rows
    assert rows.select("provider", "model", "application", "status").unique().rows() == [(provider, name, "gsm", "ok")]
    assert rows.get_column("request_id").to_list() == [f"gsm8k-main-test-#{n}" for n in range(1319)]
    assert rows.get_column("ground_truth").str.contains(r"^-?[\d.,]+$").all()
    assert rows.item(0, "ground_truth") == "18"
    assert rows.get_column("output").null_count() == 0
    unmeasured = ["ts", "input_tokens", "output_tokens", "cached_tokens", "ttft_ms", "latency_ms", "cost_usd"]
    assert rows.select(pl.col(unmeasured).null_count()).row(0) == (1319,) * len(unmeasured)


def test_the_four_models_got_the_same_prompts_and_none_is_a_duplicate() -> None:
    batch = read("zeroeval_gsm/*.json.gz", "zeroeval")
    assert batch.count == LineCount(5276, 5276, 0, 0)
    assert batch.rows.get_column("messages").n_unique() == 1319


EMBEDDINGS = "endpoint .../embeddings is not a text generation call"
THREADS = "endpoint .../threads/.../messages is not a text generation call"


@pytest.mark.parametrize(
    ("provider", "read_lines", "reasons", "statuses"),
    [
        ("openai", 420, {EMBEDDINGS: 24, THREADS: 27}, {"ok": 365, "error": 4}),
        ("azure_openai", 63, {EMBEDDINGS: 6}, {"ok": 53, "error": 4}),
        ("groq", 13, {}, {"ok": 13}),
        ("mistral", 18, {EMBEDDINGS: 6}, {"ok": 12}),
        ("together", 2, {}, {"ok": 2}),
    ],
)
def test_only_calls_that_generate_no_text_are_rejected(
    provider: str, read_lines: int, reasons: dict[str, int], statuses: dict[str, int]
) -> None:
    batch = read(f"wire_payloads/{provider}.jsonl.gz", "openai")
    short = [
        re.sub(r"endpoint \S*/(embeddings|threads)", r"endpoint .../\1", re.sub(r"thread_\w+", "...", reason))
        for reason in batch.rejected.get_column("reason")
    ]
    assert Counter(short) == reasons
    assert Counter(batch.rows.get_column("status")) == statuses
    assert batch.count == LineCount(read_lines, read_lines - len(short), len(short), 0)


@pytest.fixture(scope="module")
def payloads() -> dict[tuple[str, int], dict[str, Any]]:
    """What stands in each line, read the plain way."""
    return {
        (f"wire_payloads/{path.name}", number): json.loads(line)
        for path in (DATA / "wire_payloads").glob("*.jsonl.gz")
        for number, line in enumerate(gzip.decompress(path.read_bytes()).splitlines(), start=1)
    }


@pytest.mark.parametrize("provider", ["openai", "azure_openai", "groq", "mistral", "together"])
def test_outputs_and_tokens_are_what_the_responses_say(
    payloads: dict[tuple[str, int], dict[str, Any]], provider: str
) -> None:
    rows = read(f"wire_payloads/{provider}.jsonl.gz", "openai").rows
    checked = 0
    for row in rows.filter(pl.col("status") == "ok", pl.col("endpoint") != "/v1/responses").iter_rows(named=True):
        response = payloads[row["source_file"], row["source_line"]]["response"]
        if isinstance(response, str):
            # Independent of the reader: the decoded content of every chunk of choice 0, one after the other.
            chunks = [json.loads(data) for data in re.findall(r"^data: (\{.*)$", response, re.MULTILINE)]
            parts = [part for chunk in chunks for part in chunk["choices"] if part["index"] == 0]
            texts = [part["delta"].get("content") if "delta" in part else part["text"] for part in parts]
            assert (row["output"] or "") == "".join(text or "" for text in texts)
        else:
            choice = response["choices"][0]
            said = choice.get("message", {"content": choice.get("text")})  # a filtered answer has neither
            assert row["output"] == (said.get("content") or said.get("refusal"))
            assert row["input_tokens"] == response["usage"]["prompt_tokens"]
            assert row["output_tokens"] == response["usage"]["completion_tokens"]
        checked += 1
    assert checked == rows.filter(pl.col("status") == "ok", pl.col("endpoint") != "/v1/responses").height > 0


def test_every_call_of_the_responses_api_gives_text_or_a_tool_call() -> None:
    rows = read("wire_payloads/openai.jsonl.gz", "openai").rows.filter(pl.col("endpoint") == "/v1/responses")
    assert rows.height == 59
    assert rows.filter(pl.col("output").is_null() & pl.col("tool_calls").is_null()).height == 0
    assert rows.get_column("input_tokens").null_count() == 0


def test_errors_carry_the_providers_words() -> None:
    rows = read("wire_payloads/*openai.jsonl.gz", "openai").rows.filter(pl.col("status") == "error")
    kinds = Counter(error.split(":")[0] for error in rows.get_column("error"))
    assert kinds == {
        "HTTP 404 model_not_found": 1,
        "HTTP 400 invalid_image_url": 3,
        "HTTP 404 DeploymentNotFound": 3,
        "content_filter": 1,
    }
