"""Asks a Prometheus server, within bounds of time and size, and takes no answer in part for one.

The HTTP API is that of Prometheus 2 and later (https://prometheus.io/docs/prometheus/latest/querying/api/).
"""

from __future__ import annotations

import json
import math
import os
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

import httpx

from anven_pipelines.domain.errors import InvalidInput, UnavailableService
from anven_pipelines.domain.rollout_scrape import Sample

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import timedelta

    from anven_pipelines.spec_rollout import Metrics

_MOST_BYTES: Final = 64 * 2**20
_TOLD: Final = 200
"""Characters of what a server said that are repeated."""
_OK: Final = 200
_REDIRECT: Final = range(300, 400)
_DENIED: Final = (401, 403)


class Series(NamedTuple):
    """One series over time."""

    labels: Mapping[str, str]
    points: tuple[tuple[datetime, float], ...]


class Prometheus:
    """A server as it is asked in one look, which has one limit of time for all its questions."""

    def __init__(self, metrics: Metrics, *, environment: Mapping[str, str] = os.environ) -> None:
        """Begin a look.

        Args:
            metrics: The section `rollout.metrics` of a migration file, with a URL.
            environment: Holds the token, where one is named.

        Raises:
            InvalidInput: no URL is declared, or the token is not set.
        """
        if metrics.url is None:
            message = "rollout.metrics.url is missing; the URL of a Prometheus server is needed"
            raise InvalidInput(message)
        self._url = metrics.url.rstrip("/")
        self._headers = {"Accept": "application/json", **_authorization(metrics, environment)}
        self._timeout_s = metrics.timeout.total_seconds()
        self._deadline = time.monotonic() + self._timeout_s

    def instant(self, query: str, *, at: datetime) -> list[Sample]:
        """Return the value of each series that the query has at a moment.

        Raises:
            UnavailableService: it does not answer, or not in full.
        """
        found = self._ask("query", {"query": query, "time": f"{at.timestamp():.3f}"}, kind="vector")
        return [Sample(_labels(each), _number(each["value"][1])) for each in found]

    def over_time(self, query: str, *, start: datetime, end: datetime, step: timedelta) -> list[Series]:
        """Return the values of each series at each step.

        Raises:
            UnavailableService: it does not answer, or not in full.
        """
        asked = {
            "query": query,
            "start": f"{start.timestamp():.3f}",
            "end": f"{end.timestamp():.3f}",
            "step": f"{step.total_seconds():.3f}",
        }
        return [
            Series(
                _labels(each),
                tuple((datetime.fromtimestamp(float(at), UTC), _number(value)) for at, value in each["values"]),
            )
            for each in self._ask("query_range", asked, kind="matrix")
        ]

    def _ask(self, endpoint: str, parameters: Mapping[str, str], *, kind: str) -> list[Any]:
        status, kind_of_body, body = self._answer(f"{self._url}/api/v1/{endpoint}", parameters)
        found = self._read(status, kind_of_body, body)
        for remark in ("warnings", "infos"):
            if told := found.get(remark):
                self._fail(f"answers in part: {str(told)[:_TOLD]}")
        data = found.get("data")
        if not isinstance(data, dict) or data.get("resultType") != kind or not isinstance(data.get("result"), list):
            self._fail(f"answered {str(data)[:_TOLD]!r}, where a {kind} was asked for")
        result: list[Any] = data["result"]
        field = "value" if kind == "vector" else "values"
        if not all(
            isinstance(each, dict) and field in each and isinstance(each.get("metric"), dict) for each in result
        ):
            self._fail(f"answered a {kind} of which a series has no {field}")
        return result

    def _answer(self, url: str, parameters: Mapping[str, str]) -> tuple[int, str, bytes]:
        """Read an answer whole; one that drips, or is too long, ends at the limit."""
        body = bytearray()
        try:
            with (
                httpx.Client(timeout=self._left_s(), headers=self._headers) as client,
                client.stream("GET", url, params=dict(parameters)) as answer,
            ):
                for part in answer.iter_bytes():
                    body += part
                    self._left_s()
                    if len(body) > _MOST_BYTES:
                        self._fail(f"answers with more than {_MOST_BYTES >> 20} MiB")
                return answer.status_code, answer.headers.get("content-type", ""), bytes(body)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            what = "did not answer in time" if isinstance(error, httpx.TimeoutException) else "does not answer"
            message = f"Prometheus at {self._url} {what} ({type(error).__name__}: {error}); is it the right URL?"
            raise UnavailableService(message) from error

    def _left_s(self) -> float:
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            self._fail(f"did not answer within {self._timeout_s:g} s (rollout.metrics.timeout)")
        return left_s

    def _read(self, status: int, kind: str, body: bytes) -> dict[str, Any]:
        try:
            found = json.loads(body)
        except ValueError:
            found = None
        if status in _DENIED:
            self._fail(f"refuses with status {status}: the token that rollout.metrics.token_env names is needed")
        if status in _REDIRECT:
            self._fail(f"answers with a redirect, status {status}: declare the URL that it leads to")
        if not isinstance(found, dict) or "status" not in found:
            said = f"{kind or 'text'} of {len(body):,} bytes: {body[:_TOLD].decode(errors='replace')!r}"
            self._fail(f"is none: it answered with status {status} and {said}; a URL before /api/v1 is needed")
        if status != _OK or found["status"] != "success":
            told = f"{found.get('errorType', '')}: {found.get('error', '')}"[:_TOLD]
            self._fail(f"answered with status {status}, {told}")
        return found

    def _fail(self, why: str) -> NoReturn:
        message = f"Prometheus at {self._url} {why}"
        raise UnavailableService(message)


def _authorization(metrics: Metrics, environment: Mapping[str, str]) -> dict[str, str]:
    if metrics.token_env is None:
        return {}
    token = environment.get(metrics.token_env, "").strip()
    if not token:
        message = (
            f"the environment variable {metrics.token_env} is not set or empty; Prometheus' token is needed in it: "
            f"export {metrics.token_env}=..., or leave rollout.metrics.token_env out where none is needed"
        )
        raise InvalidInput(message)
    return {"Authorization": f"Bearer {token}"}


def _labels(series: Mapping[str, Any]) -> dict[str, str]:
    return {str(name): str(value) for name, value in series["metric"].items()}


def _number(text: object) -> float:
    """Read a sample's value; what is none is NaN, which no reader takes for a count."""
    try:
        return float(str(text))
    except ValueError:
        return math.nan
