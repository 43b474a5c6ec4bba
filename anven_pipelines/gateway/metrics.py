"""Prometheus counters and histograms of the event log's events, per workload and arm.

Every worker keeps its own and writes them to a file each second; whichever worker is scraped answers with all of them,
told apart by the label `worker`. The file of a worker that has ended stays for a day: a sum over workers
(`sum by (workload, intended) (rate(...))`) then never falls.

Labels follow the event log: `intended` is the arm by assignment, by which evidence is counted.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from anven_pipelines.domain.gateway_event import GatewayEvent

Labels = tuple[tuple[str, str], ...]

BUCKETS_S: Final = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 30.0, 60.0, 120.0)
ALIVE_S: Final = 5.0
"""Age of its samples, which are written each second, above which a worker is taken to have ended."""
KEPT_S: Final = 24 * 3600.0

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
}


class GatewayMetrics:
    """Counts of one worker."""

    def __init__(self, worker: str) -> None:
        """Start at nothing."""
        self._worker = worker
        self._counts: dict[tuple[str, Labels], float] = {}
        self._histograms: dict[tuple[str, Labels], list[float]] = {}

    def observe(self, event: GatewayEvent) -> None:
        """Count an event."""
        workload = event.workload or ""
        arm = (("workload", workload), ("intended", event.intended or ""))
        if event.kind == "breaker":
            self._add("anven_breaker_trips_total", (("workload", workload), ("reason", event.error_class or "")))
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
        mine = ("worker", self._worker)
        found = [_sample(name, (*labels, mine), value) for (name, labels), value in sorted(self._counts.items())]
        for (name, labels), counts in sorted(self._histograms.items()):
            *buckets, total = counts
            below = 0.0
            for limit, count in zip((*map(str, BUCKETS_S), "+Inf"), buckets, strict=True):
                below += count
                found.append(_sample(f"{name}_bucket", (*labels, mine, ("le", limit)), below))
            found += [_sample(f"{name}_sum", (*labels, mine), total), _sample(f"{name}_count", (*labels, mine), below)]
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
    samples = list(lines)
    for path in sorted(folder.glob("*.prom")):
        if path.stem == worker:
            continue
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > KEPT_S:
                path.unlink()
                continue
            others = path.read_text(encoding="utf-8").splitlines()
            # What held when a worker ended holds no longer.
            samples += [line for line in others if not line.startswith(("anven_target_share", "anven_breaker_open"))]
    written: list[str] = []
    for name, (kind, text) in HELP.items():
        own = [line for line in samples if _family(line) == name]
        if own:
            written += [f"# HELP {name} {text}", f"# TYPE {name} {kind}", *own]
    return "\n".join(written) + "\n"


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
