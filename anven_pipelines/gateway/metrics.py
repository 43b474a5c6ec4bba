"""Prometheus counters and histograms of the event log's events, per workload and arm.

Every worker keeps its own and writes them to a file each second; whichever worker is scraped answers with all of them,
told apart by the label `worker`. The file of a worker that has ended stays for a day: a sum over workers
(`sum by (workload, intended) (rate(...))`) then never falls.

Labels follow the event log: `intended` is the arm by assignment, by which evidence is counted.

A worker holds a lock on a file of its own for as long as it lives. By it the others tell whether one that writes no
more has ended, so that its counts are whole, or lives and counts what nobody sees.
"""

from __future__ import annotations

import fcntl
import time
from bisect import bisect_left
from contextlib import suppress
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING, Final

from anven_pipelines.domain.unit_counts import BUCKETS, COUNTERS, KEPT_S, PREFIX, bucket_name
from anven_pipelines.gateway.unit_metrics import UnitMetrics

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from anven_pipelines.domain.gateway_event import GatewayEvent
    from anven_pipelines.gateway.unit_metrics import Maturity

Labels = tuple[tuple[str, str], ...]

BUCKETS_S: Final = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 30.0, 60.0, 120.0)
ALIVE_S: Final = 5.0
"""Age of its samples, which are written each second, above which a worker is taken to have ended."""

HELP: Final[Mapping[str, tuple[str, str]]] = {
    "anven_requests_total": ("counter", "Requests that ended, mirrored ones too (kind=shadow)."),
    "anven_errors_total": ("counter", "Failures of the intended arm by class, also those that legacy rescued."),
    "anven_contract_failures_total": ("counter", "Answers that broke the declared output contract."),
    "anven_contract_checks_total": ("counter", "Answers whose form was checked."),
    "anven_tokens_total": ("counter", "Tokens by direction, of the arm that answered."),
    "anven_cost_usd_total": ("counter", "Cost of answers in USD, where a price is declared."),
    "anven_priced_requests_total": ("counter", "Requests whose cost is known."),
    "anven_quality_score_sum": ("counter", "Sum of the scores of feedback."),
    "anven_quality_score_count": ("counter", "Feedback that holds a score."),
    "anven_breaker_trips_total": ("counter", "Times that a breaker sent the workload back to legacy."),
    "anven_ttft_seconds": ("histogram", "Time to the first token of a stream, as the client waited."),
    "anven_latency_seconds": ("histogram", "Time to the end of the answer, as the client waited; answers only."),
    "anven_target_share": ("gauge", "Share of the units that the route in force gives to the target."),
    "anven_breaker_open": ("gauge", "1 while the breaker keeps the workload with legacy."),
    "anven_events_dropped_total": ("counter", "Events that were not written."),
    "anven_spans_dropped_total": ("counter", "Spans that no receiver took, where spans are sent."),
    "anven_texts_written_total": ("counter", "Requests and shadow answers whose redacted text was kept."),
    "anven_texts_failed_total": (
        "counter",
        "Requests and shadow answers whose text could not be redacted and was not kept.",
    ),
    "anven_texts_dropped_total": (
        "counter",
        "Requests and shadow answers whose text was not written for want of room or time.",
    ),
    "anven_worker_up": ("gauge", "1 while the worker lives, 0 once it has ended and counts no more."),
    "anven_worker_started_seconds": ("gauge", "When the worker began to count, in seconds since 1970."),
    "anven_worker_written_seconds": ("gauge", "When the worker last told its samples, in seconds since 1970."),
    "anven_worker_score_wait_seconds": ("gauge", "How long a unit's score has, from its first request on."),
    "anven_worker_judged_share": ("gauge", "Share of the units, drawn by hash, that are due for a score."),
    **{PREFIX + name: ("counter", text) for name, text in COUNTERS.items()},
    **{bucket_name(name): ("counter", text) for name, text in BUCKETS.items()},
}
_UP: Final = "anven_worker_up"
_WRITTEN: Final = "anven_worker_written_seconds"


class GatewayMetrics:
    """Counts of one worker."""

    def __init__(self, worker: str, maturity: Mapping[str, Maturity] | None = None) -> None:
        """Start at nothing.

        Args:
            worker: Names it, differently at each start.
            maturity: Each workload that is served, and when its scores are due.
        """
        self._worker = worker
        self._maturity = dict(maturity or {})
        self._started_s = time.time()
        self._units = UnitMetrics(self._maturity)
        self._counts: dict[tuple[str, Labels], float] = {}
        self._histograms: dict[tuple[str, Labels], list[float]] = {}

    def observe(self, event: GatewayEvent) -> None:
        """Count an event."""
        self._units.observe(event)
        workload = event.workload or ""
        arm = (("workload", workload), ("intended", event.intended or ""))
        if event.kind == "breaker":
            tripped = (("generation", str(event.generation or 0)), ("reason", event.error_class or ""))
            self._add("anven_breaker_trips_total", (("workload", workload), *tripped))
        elif event.kind == "feedback":
            if event.score is not None:
                self._add("anven_quality_score_sum", arm, event.score)
                self._add("anven_quality_score_count", arm)
        else:
            self._request(event, (*arm, ("kind", event.kind)))

    def gauge(self, name: str, workload: str, value: float) -> None:
        """Set a value that holds now."""
        self._counts[name, (("workload", workload),)] = value

    def total(self, name: str, value: float) -> None:
        """Set a count that is kept elsewhere."""
        self._counts[name, ()] = value

    def lines(self) -> list[str]:
        """Return the samples in Prometheus' text format."""
        mine, now = ("worker", self._worker), datetime.now(UTC)
        for workload, maturity in self._maturity.items():
            self.gauge("anven_worker_started_seconds", workload, self._started_s)
            self.gauge(_WRITTEN, workload, now.timestamp())
            self.gauge("anven_worker_score_wait_seconds", workload, maturity.after.total_seconds())
            self.gauge("anven_worker_judged_share", workload, maturity.judged)
        found = [_sample(name, (*labels, mine), value) for (name, labels), value in sorted(self._counts.items())]
        for (name, labels), counts in sorted(self._histograms.items()):
            *buckets, total = counts
            below = 0.0
            for limit, count in zip((*map(str, BUCKETS_S), "+Inf"), buckets, strict=True):
                below += count
                found.append(_sample(f"{name}_bucket", (*labels, mine, ("le", limit)), below))
            found += [_sample(f"{name}_sum", (*labels, mine), total), _sample(f"{name}_count", (*labels, mine), below)]
        found += [_sample(name, (*labels, mine), value) for name, labels, value in self._units.samples(now)]
        return found

    def _request(self, event: GatewayEvent, arm: Labels) -> None:
        ended = (("served", event.served or ""), ("status", event.status or ""), ("why", event.why or ""))
        self._add("anven_requests_total", (*arm, *ended))
        if event.error_class is not None:
            self._add("anven_errors_total", (*arm, ("error_class", event.error_class)))
        if event.contract_ok is not None:
            self._add("anven_contract_checks_total", arm)
            self._add("anven_contract_failures_total", arm, float(not event.contract_ok))
        for direction, tokens in (("input", event.input_tokens), ("output", event.output_tokens)):
            if tokens is not None:
                self._add(
                    "anven_tokens_total", (*arm, ("served", event.served or ""), ("direction", direction)), tokens
                )
        if event.cost_usd is not None:
            self._add("anven_cost_usd_total", arm, event.cost_usd)
            self._add("anven_priced_requests_total", arm)
        if event.status == "ok":
            self._time("anven_ttft_seconds", arm, event.ttft_ms)
            self._time("anven_latency_seconds", (*arm, ("stream", str(bool(event.stream)).lower())), event.latency_ms)

    def _add(self, name: str, labels: Labels, value: float = 1.0) -> None:
        self._counts[name, labels] = self._counts.get((name, labels), 0.0) + value

    def _time(self, name: str, labels: Labels, milliseconds: float | None) -> None:
        if milliseconds is None:
            return
        counts = self._histograms.setdefault((name, labels), [0.0] * (len(BUCKETS_S) + 2))
        counts[bisect_left(BUCKETS_S, milliseconds / 1e3)] += 1
        counts[-1] += milliseconds / 1e3


def hold_lock(folder: Path, worker: str) -> IO[str] | None:
    """Lock a worker's file until what is returned is closed or the process ends, however; None where that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / f"{worker}.lock").open("w")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return None  # it is then never known to have ended
    return lock


def write_metrics(folder: Path, worker: str, lines: list[str]) -> None:
    """Put a worker's samples where every worker finds them; a full disk only makes them old."""
    path = folder / f"{worker}.prom"
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text("\n".join(lines), encoding="utf-8")
        temporary.replace(path)


def workers_in(folder: Path, worker: str) -> list[str]:
    """Return the workers that write their samples now, this one among them."""
    found = {worker}
    for path in folder.glob("*.prom"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime <= ALIVE_S:
                found.add(path.stem)
    return sorted(found)


def exposition(folder: Path, worker: str, lines: list[str]) -> str:
    """Return the samples of all workers in Prometheus' text format, this one's as they are now.

    Args:
        folder: Where the workers write.
        worker: This one.
        lines: Its samples.
    """
    samples = [*lines, *_up(lines, is_up=True)]
    for path in sorted(folder.glob("*.prom")):
        if path.stem == worker:
            continue
        with suppress(OSError):
            lock = path.with_suffix(".lock")
            has_ended = _has_ended(lock)  # before its file is read, which is then its last
            if time.time() - path.stat().st_mtime > KEPT_S and (has_ended or not lock.exists()):
                path.unlink()
                lock.unlink(missing_ok=True)
                continue
            others = path.read_text(encoding="utf-8").splitlines()
            samples += _up(others, is_up=not has_ended)
            # What held when a worker ended holds no longer.
            samples += [line for line in others if not line.startswith(("anven_target_share", "anven_breaker_open"))]
    families: dict[str, list[str]] = {name: [] for name in HELP}
    for line in samples:
        families.setdefault(_family(line), []).append(line)
    written: list[str] = []
    for name, (kind, text) in HELP.items():
        if families[name]:
            written += [f"# HELP {name} {text}", f"# TYPE {name} {kind}", *families[name]]
    return "\n".join(written) + "\n"


def _up(lines: list[str], *, is_up: bool) -> list[str]:
    """Return a sample for each workload of a worker, made of those that say when it wrote."""
    labels = [line.removeprefix(_WRITTEN).rpartition(" ")[0] for line in lines if line.startswith(_WRITTEN)]
    return [f"{_UP}{each} {int(is_up)}" for each in labels]


def _has_ended(lock: Path) -> bool:
    """Whether nobody holds a worker's lock; one without a lock may live."""
    with suppress(OSError), lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return True
    return False


def _family(line: str) -> str:
    name = line.partition("{")[0]
    for suffix in ("_bucket", "_sum", "_count"):
        if name not in HELP and name.removesuffix(suffix) in HELP:
            return name.removesuffix(suffix)
    return name


def _sample(name: str, labels: Labels, value: float) -> str:
    written = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels)
    return f"{name}{{{written}}} {value:.10g}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
