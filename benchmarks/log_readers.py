"""Rows a second of the log readers, beside a plain `json.loads` loop over the same bytes in the same run.

    python benchmarks/log_readers.py [--quick] [--json]

The loop is the floor: it checks, converts, keeps and rejects nothing. Each pair is timed in turns and the best turn
counts, so that a busy machine harms both alike; `ratio` is the reader's time over the loop's.
"""

from __future__ import annotations

import argparse
import gzip
import json
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from anven_pipelines.ingest.readers import read_logs
from anven_pipelines.ingest.sources import list_files

if TYPE_CHECKING:
    from collections.abc import Callable

    from anven_pipelines.spec_values import LogFormat

PROMPT = "The parcel was handed over on Tuesday and is on its way. " * 12
ANSWER = "It arrives on Thursday. " * 16


class Row(NamedTuple):
    """One reader beside the loop; rates are lines a second."""

    log: str
    lines: int
    mebibytes: float
    reader_rate: float
    loop_rate: float

    @property
    def ratio(self) -> float:
        """The reader's time over the loop's."""
        return self.loop_rate / self.reader_rate


def canonical_line(number: int) -> dict[str, Any]:
    return {
        "request_id": f"r-{number}",
        "ts": "2026-11-20T08:30:00Z",
        "application": "support",
        "messages": [{"role": "user", "content": f"{number}: {PROMPT}"}],
        "params": {"temperature": 0, "max_tokens": 256},
        "output": ANSWER,
        "input_tokens": 180,
        "output_tokens": 96,
        "latency_ms": 812.5,
    }


def openai_line(number: int) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": ANSWER}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 180, "completion_tokens": 96, "total_tokens": 276}
    return {
        "path": "/v1/chat/completions",
        "status": 200,
        "latency_ms": 812.5,
        "request": {"model": "m", "messages": [{"role": "user", "content": f"{number}: {PROMPT}"}], "temperature": 0},
        "response": {"id": f"c-{number}", "created": 1_795_163_400, "model": "m", "choices": [choice], "usage": usage},
    }


def streamed_line(number: int) -> dict[str, Any]:
    parts = [{"choices": [{"index": 0, "delta": {"content": f"{word} "}}]} for word in ANSWER.split()]
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    stream = "".join(f"data: {json.dumps(part)}\n\n" for part in [*parts, end])
    return openai_line(number) | {"response": stream + "data: [DONE]\n\n"}


def measure(*, quick: bool) -> list[Row]:
    lines, turns = (10_000, 2) if quick else (200_000, 3)
    cases: list[tuple[str, LogFormat, Callable[[int], dict[str, Any]], bool]] = [
        ("canonical", "canonical", canonical_line, False),
        ("canonical, gzip", "canonical", canonical_line, True),
        ("openai", "openai", openai_line, False),
        ("openai, streamed", "openai", streamed_line, False),
    ]
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for name, log_format, make, packed in cases:
            content = "\n".join(json.dumps(make(number)) for number in range(lines)).encode()
            path = Path(folder) / "log.jsonl"
            path.write_bytes(gzip.compress(content, 1) if packed else content)
            reader, loop = timed(path, log_format, lines, turns)
            rows.append(Row(name, lines, len(content) / 2**20, lines / reader, lines / loop))
    return rows


def timed(path: Path, log_format: LogFormat, lines: int, turns: int) -> tuple[float, float]:
    """Return the best seconds of the reader and of the loop."""
    files = list_files([path.name], base=str(path.parent))
    reader, loop = [], []
    for _ in range(turns):
        start = time.perf_counter()
        accepted = sum(batch.count.accepted for batch in read_logs(files, log_format=log_format))
        reader.append(time.perf_counter() - start)
        start = time.perf_counter()
        data = path.read_bytes()
        data = gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
        parsed = sum(json.loads(line) is not None for line in data.splitlines())
        loop.append(time.perf_counter() - start)
        if not accepted == parsed == lines:
            message = f"{path}: {accepted} accepted and {parsed} parsed of {lines} lines"
            raise RuntimeError(message)
    return min(reader), min(loop)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the log readers beside a json.loads loop.")
    parser.add_argument("--quick", action="store_true", help="fewer lines, under a minute")
    parser.add_argument("--json", action="store_true", help="one JSON object of named figures on stdout")
    options = parser.parse_args()
    rows = measure(quick=options.quick)
    if options.json:
        figures = [row._asdict() | {"ratio": round(row.ratio, 2)} for row in rows]
        print(json.dumps({"quick": options.quick, "figures": figures}))
        return
    print("| log | lines | MiB | reader, lines/s | json.loads loop, lines/s | ratio |\n|---|---|---|---|---|---|")
    for row in rows:
        rates = f"{row.reader_rate:,.0f} | {row.loop_rate:,.0f} | {row.ratio:.1f}"
        print(f"| {row.log} | {row.lines:,} | {row.mebibytes:.0f} | {rates} |")


if __name__ == "__main__":
    main()
