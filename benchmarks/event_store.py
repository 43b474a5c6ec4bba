"""What a look at a rollout costs after a day of ingestions, and what it would without merging the parts.

    python benchmarks/event_store.py [--quick] [--json] [--seed N]

Six workloads behind one gateway are looked at every 15 s, and each look takes in what is new: some ten events. A look
is timed as the controller makes it: ingest, read the workload's events and all numbers, and count what was lost. Beside
it, the same events in one part an ingestion, which is how they are written. Times are medians of few looks.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from anven_pipelines.domain.gateway_event import GatewayEvent
from anven_pipelines.ingest import event_parts
from anven_pipelines.ingest.event_store import MANIFEST, EventStore

WORKLOADS: Final = 6
EACH: Final = 10  # events an ingestion
LOOKS: Final = 5
T0: Final = datetime(2026, 11, 20, tzinfo=UTC)


def a_line(number: int, rng: random.Random) -> bytes:
    """Return the line of one request."""
    arm = rng.choice(("target", "legacy"))
    return GatewayEvent(
        event_id=f"gateway-1-0123456789abcdef-{number}",
        kind="request",
        ts=T0 + timedelta(seconds=number / 4),
        worker="gateway-1-0123456789abcdef",
        seq=number,
        workload=f"workload-{number % WORKLOADS}",
        attempt=1,
        generation=1,
        stage=0,
        share=0.5,
        unit=f"{rng.getrandbits(128):032x}",
        bucket=rng.random(),
        intended=arm,  # type: ignore[arg-type]  # one of both
        served=arm,  # type: ignore[arg-type]  # one of both
        request_id=f"{rng.getrandbits(128):032x}",
        status="ok",
        stream=True,
        ttft_ms=rng.lognormvariate(5, 0.3),
        latency_ms=rng.lognormvariate(6, 0.3),
        cost_usd=rng.random() / 100,
        cached=False,
        contract_ok=True,
    ).to_line()


class Gateway:
    """Writes into one segment, as a worker does."""

    def __init__(self, log: Path, *, seed: int) -> None:
        log.mkdir(parents=True)
        self.log, self._rng, self._number = log, random.Random(seed), 0  # noqa: S311 - invented traffic
        self._segment = log / "gateway-1-0123456789abcdef-000001.jsonl.open"

    def write(self) -> None:
        """Append what comes between two looks."""
        numbers = range(self._number + 1, self._number + EACH + 1)
        self._number = numbers[-1]
        with self._segment.open("ab") as file:
            file.write(b"".join(a_line(number, self._rng) for number in numbers))


def unmerged(store: Path, other: Path) -> None:
    """Lay out a store's events in one part an ingestion."""
    manifest, events = json.loads((store / MANIFEST).read_bytes()), EventStore(store).events()
    other.mkdir()
    manifest["parts"] = [f"part-{start:09d}-0.parquet" for start in range(0, events.height, EACH)]
    for place, part in enumerate(manifest["parts"]):
        (other / part).write_bytes(event_parts.to_parquet(events[place * EACH : (place + 1) * EACH]))
    (other / MANIFEST).write_text(json.dumps(manifest))


def median_look_ms(store: Path, gateway: Gateway) -> float:
    """Return how long a look takes, in milliseconds."""
    kept, times_ms = EventStore(store), []
    for _ in range(LOOKS):
        gateway.write()
        before = time.perf_counter()
        kept.ingest(gateway.log)
        found = kept.contents()
        found.of("workload-0", attempt=1)
        found.numbers()
        times_ms.append((time.perf_counter() - before) * 1e3)
    return statistics.median(times_ms)


def measure(*, ingestions: int, seed: int) -> dict[str, float]:
    """Return what a look costs with and without merging, and how many parts there are.

    Args:
        ingestions: How often something new was taken in.
        seed: Of the events.
    """
    figures: dict[str, float] = {"ingestions": ingestions, "events": ingestions * EACH}
    with tempfile.TemporaryDirectory() as folder:
        merged, single = Path(folder) / "merged", Path(folder) / "unmerged"
        gateway = Gateway(Path(folder) / "log", seed=seed)
        for _ in range(ingestions):
            gateway.write()
            EventStore(merged).ingest(gateway.log)
        unmerged(merged, single)
        figures["merged_parts"] = len(json.loads((merged / MANIFEST).read_bytes())["parts"])
        figures["merged_look_ms"] = median_look_ms(merged, gateway)
        vars(event_parts)["MERGED"] = 2 * ingestions
        figures["unmerged_look_ms"] = median_look_ms(single, gateway)
    return figures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="400 ingestions instead of 4,000")
    parser.add_argument("--json", action="store_true", help="one object of figures")
    parser.add_argument("--seed", type=int, default=20250101)
    asked = parser.parse_args()
    figures = measure(ingestions=400 if asked.quick else 4_000, seed=asked.seed)
    if asked.json:
        print(json.dumps(figures))
        return
    for name, value in figures.items():
        print(f"{name:20} {value:10,.0f}")


if __name__ == "__main__":
    main()
