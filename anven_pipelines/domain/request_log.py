"""The canonical request table: one row per logged call, whatever API and log format it came from."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from datetime import date
from typing import TYPE_CHECKING, Final

import polars as pl

from anven_pipelines.domain.table import UTC_TIMESTAMP, Column, Table

if TYPE_CHECKING:
    from anven_pipelines.spec import Legacy

REQUEST_LOG: Final = Table(
    "request_log",
    (
        Column("request_id", pl.String, "Id of the call as logged; answers and labels are joined on it."),
        Column("ts", UTC_TIMESTAMP, "When the call was made, UTC; a time logged without a zone is read as UTC."),
        Column("application", pl.String, "Calling application."),
        Column("endpoint", pl.String, "API that was called, such as /v1/chat/completions."),
        Column("provider", pl.String, "Who served the call, such as openai."),
        Column("model", pl.String, "Model that served the call; the requested one where the response names none."),
        Column("messages", pl.String, "Prompt: canonical JSON list of {role, content, ...}."),
        Column("params", pl.String, "Request parameters (temperature, max_tokens, tools, ...): canonical JSON object."),
        Column("context", pl.String, "Retrieved passages or other input to judge the answer by: canonical JSON."),
        Column("output", pl.String, "Text of the answer; of a call with n > 1 the first choice."),
        Column("tool_calls", pl.String, "Tool calls of the answer: canonical JSON list in the chat completions form."),
        Column("finish_reason", pl.String, "Why the answer ended, in the provider's words."),
        Column("status", pl.String, "'ok', 'error', or 'unanswered' where no response was logged."),
        Column("error", pl.String, "What went wrong; NULL unless status is 'error'."),
        Column("ground_truth", pl.String, "Correct answer where the log carries one."),
        Column("input_tokens", pl.Int64, "Tokens of the prompt as the provider counted them."),
        Column("output_tokens", pl.Int64, "Tokens of the answer as the provider counted them."),
        Column("cached_tokens", pl.Int64, "Prompt tokens that came from the provider's cache."),
        Column("ttft_ms", pl.Float64, "Time to the first token in milliseconds, as the caller saw it."),
        Column("latency_ms", pl.Float64, "Time to the last token in milliseconds, as the caller saw it."),
        Column("cost_usd", pl.Float64, "Cost of the call in US dollars as logged."),
        Column("user_hash", pl.String, "Pseudonym of the caller (see `pseudonym`); never the raw user id."),
        Column("conversation_id", pl.String, "Conversation the call belongs to; calls of one are not independent."),
        Column("tags", pl.String, "Further labels, `task` among them: canonical JSON object."),
        Column("source_file", pl.String, "Log file, as seen from the declared pattern."),
        Column("source_line", pl.Int64, "Line in the file from 1; of a JSON array the element's number from 1."),
    ),
)

REJECTED_LINES: Final = Table(
    "rejected_lines",
    (
        Column("source_file", pl.String, "Log file, as seen from the declared pattern."),
        Column("source_line", pl.Int64, "Line in the file from 1; of a JSON array the element's number from 1."),
        Column("reason", pl.String, "What was found and what was needed."),
        Column("raw", pl.Binary, "The line's bytes without its line end; where they were cut, the reason says so."),
    ),
)

JSON_COLUMNS: Final = ("messages", "params", "context", "tool_calls", "tags")
UNDATED: Final = "undated"
REJECTED_SHARE_TO_WARN: Final = 0.01

_DAY: Final = re.compile(
    r"""(?<!\d)((?:19|20)\d\d) (?: -(\d\d)-(\d\d) | /(\d\d)/(\d\d) | _(\d\d)_(\d\d) | (\d\d)(\d\d) ) (?!\d)
    | \byear=(\d{4})/month=(\d{1,2})/day=(\d{1,2})(?!\d)""",
    re.VERBOSE,
)


@dataclass(frozen=True)
class LineCount:
    """What became of the lines that were read; one that does not add up cannot be made.

    Attributes:
        read: Lines that are not blank.
        accepted: Lines that are now (part of) a row; a batch request and its result are two lines of one row.
        rejected: Lines that are quarantined with a reason.
        duplicates: Lines that are byte for byte the same as an earlier one of the source.
    """

    read: int = 0
    accepted: int = 0
    rejected: int = 0
    duplicates: int = 0

    def __post_init__(self) -> None:
        """Refuse a count in which lines were lost or invented.

        Raises:
            ValueError: the parts do not add up to the lines read, or one is negative.
        """
        parts = (self.accepted, self.rejected, self.duplicates)
        if min(parts) < 0 or self.read != sum(parts):
            message = f"{self.read} lines read, but {' + '.join(map(str, parts))} accepted, rejected and duplicate"
            raise ValueError(message)

    def __add__(self, other: LineCount) -> LineCount:
        return LineCount(
            self.read + other.read,
            self.accepted + other.accepted,
            self.rejected + other.rejected,
            self.duplicates + other.duplicates,
        )


def of_model(legacy: Legacy) -> pl.Expr:
    """Tell the calls of the declared model, named alone or as `provider/model`; NULL where the log names none."""
    return (pl.col("model") == legacy.model) | (pl.concat_str("provider", "model", separator="/") == legacy.model)


def of_applications(legacy: Legacy) -> pl.Expr:
    """Tell the calls of the declared applications, or all where none is declared."""
    return pl.lit(value=True) if legacy.applications is None else pl.col("application").is_in(legacy.applications)


def log_day(source_file: str) -> str:
    """Return the partition of a log file: the day named in its path as YYYY-MM-DD, else 'undated'.

    Read are 2026-11-20, 2026/11/20, 2026_11_20, 20261120 and year=2026/month=11/day=20, and only days that
    the calendar has. Of several days the last one counts, because it stands closest to the file.
    """
    for match in reversed(list(_DAY.finditer(source_file))):
        year, month, day = (int(group) for group in match.groups() if group is not None)
        try:
            return date(year, month, day).isoformat()
        except ValueError:
            continue
    return UNDATED


def pseudonym(user: str) -> str:
    """Return a stable stand-in for a user id: 64 bits of its SHA-256, in hex.

    It is a pseudonym, not anonymity: who can guess the id can compute it. It keeps raw ids out of tables while
    calls of one user can still be counted together.
    """
    return f"sha256:{hashlib.sha256(user.encode()).hexdigest()[:16]}"
