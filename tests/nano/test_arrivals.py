from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from anven_pipelines.domain.errors import UnreadableSource
from anven_pipelines.nano.arrivals import read_trace

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    "text",
    [
        "TIMESTAMP,n\n2023-11-16 18:15:46.6805900,9\n2023-11-16 18:15:47.1805900,4\n2023-11-16 18:15:49.6805900,1\n",
        "TIMESTAMP\n2024-05-10 00:00:00.00993+00:00\n2024-05-10 00:00:00.50993+00:00\n2024-05-10 00:00:03.00993Z\n",
        "a,timestamp\n1,2026-11-20T08:00:00Z\n2,2026-11-20T08:00:00.5Z\n3,2026-11-20T09:00:03+01:00\n",
        "timestamp\n2026-11-20 08:00:00\n2026-11-20 08:00:00.500\n2026-11-20 08:00:03\n",
        "Timestamp,Model\n5,gpt-4\n5.5,ChatGPT\n8,gpt-4\n",
        "arrived_at,num_prefill_tokens\r\n0.0,1\r\n3.0,2\r\n0.5,3\r\n",
        "arrival_time\n1.7e9\n1700000000.5\n1700000003\n",
    ],
    ids=["azure 2023", "azure 2024", "iso", "iso with a blank", "burstgpt", "vidur, out of order", "epoch"],
)
def test_a_trace_may_be_written_in_several_ways(text: str, tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_bytes(text.encode())
    assert read_trace(tmp_path / "trace.csv").tolist() == pytest.approx([0, 0.5, 3])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read as CSV"),
        ("", "cannot be read as CSV"),
        ("when,tokens\n1,2\n", "has the columns when, tokens; one of timestamp, arrived_at"),
        ("timestamp\n", "holds no arrivals"),
        ("timestamp\n1\nsoon\n", "timestamp is 'soon' in row 2"),
        ("timestamp,n\n1,a\n,b\n", "timestamp is None in row 2"),
        ("timestamp\n1\nnan\n", "timestamp is 'nan' in row 2"),
        ("timestamp\nsoon\n", "timestamp is 'soon' in row 1; seconds, or ISO 8601 throughout, are needed"),
        ("timestamp\n1\n2026-11-20 08:00:00\n", "is '2026-11-20 08:00:00' in row 2"),
        ('timestamp\n1,2,3\n"', "cannot be read as CSV"),
    ],
)
def test_a_broken_trace_says_what_is_wrong(text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(UnreadableSource, match=message) as caught:
        read_trace(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
