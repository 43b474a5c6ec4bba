"""Streams of a canary whose errors, times to first token and latencies are those of recorded requests.

The recordings are no part of the project; the folder DATA holds `PROVIDER_70b.json.gz` as llmperf-leaderboard publishes
them: 150 requests each to four hosted endpoints, in order. Outcomes are drawn in blocks of 50 requests that follow each
other in the recording (circularly), so that bursts stay together: lepton's longest, 121 refusals, is cut to 50. A block
meets the units that come one after the other, whatever their arm.

Where legacy and target are the same provider, both draw from one series of blocks, and a burst or a slow spell meets
both at the same time. Only where a world says `apart`, or the providers differ, has each arm a series of its own: two
providers as good as each other in the long run, of which one meets its bursts while the other does not.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from benchmarks.canary_controllers import (
    SHARED,
    BoolArray,
    FloatArray,
    IntArray,
    Simulated,
    Units,
    baseline_of,
    dealt,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

DATA: Final = Path(__file__).parents[2] / "shared" / "data" / "llmperf"
PROVIDERS: Final = ("anyscale", "together", "bedrock", "lepton")
BLOCK: Final = 50


class Recording(NamedTuple):
    """One provider's requests in order; NaN is the time of one that failed."""

    failed: BoolArray
    ttft_ms: FloatArray
    latency_ms: FloatArray


class World(NamedTuple):
    """What happens to the traffic.

    Attributes:
        units_an_hour: Users or conversations that come.
        legacy: Provider of the one arm.
        target: Provider of the other.
        apart: Whether each arm has a series of blocks of its own though the provider is the same.
        ttft_ms: Added to the target's times to first token, and to its latencies.
        ttft_share: Likewise, as a share of the time to first token.
        latency_share: Added to the target's latencies, as a share of them.
        bursts: Provider of failures that are mixed into the target's.
        mixed: Share of the blocks in which they are.
        burst: How many failures in a row are kept together; 1 spreads them evenly.
    """

    units_an_hour: int
    legacy: str
    target: str
    apart: bool = False
    ttft_ms: float = 0.0
    ttft_share: float = 0.0
    latency_share: float = 0.0
    bursts: str | None = None
    mixed: float = 0.0
    burst: int = BLOCK

    @property
    def is_equal(self) -> bool:
        """Whether the target is as good as legacy."""
        return self == World(self.units_an_hour, self.legacy, self.legacy, self.apart)

    @property
    def name(self) -> str:
        """What is set beside what."""
        told = [
            "bursts apart" if self.apart else "",
            f"+{self.ttft_ms:g} ms TTFT" if self.ttft_ms else "",
            f"+{self.ttft_share:.0%} TTFT" if self.ttft_share else "",
            f"+{self.latency_share:.0%} latency" if self.latency_share else "",
            f"{self.bursts}'s failures in {self.mixed:.0%}" if self.bursts else "",
            "spread" if self.bursts and self.burst == 1 else "",
        ]
        return ", ".join([f"{self.legacy} > {self.target}", *filter(None, told)])


def path_of(folder: Path, provider: str) -> Path:
    """Return the file of a provider's requests."""
    return folder / f"{provider}_70b.json.gz"


def read(provider: str, folder: Path = DATA) -> Recording:
    """Read a provider's requests."""
    with gzip.open(path_of(folder, provider), "rt", encoding="utf-8") as file:
        requests = json.load(file)
    failed = np.array([request["error_code"] is not None for request in requests])
    ttft, latency = (
        np.where(failed, np.nan, [1000 * request[name] for request in requests])
        for name in ("ttft_s", "end_to_end_latency_s")
    )
    return Recording(failed, ttft, latency)


def drawn(recording: Recording, n: int, block: int, rng: np.random.Generator) -> IntArray:
    """Draw n places of a recording in blocks, its end being followed by its beginning."""
    starts = rng.integers(0, len(recording.failed), -(-n // block))
    return np.asarray((starts[:, None] + np.arange(block)).ravel()[:n] % len(recording.failed))


def served(world: World, recording: Recording) -> Recording:
    """Return a recording with the times of the world's target."""
    added = world.ttft_ms + world.ttft_share * recording.ttft_ms
    latency = (1 + world.latency_share) * recording.latency_ms + added
    return recording._replace(ttft_ms=recording.ttft_ms + added, latency_ms=latency)


def stages_of(world: World, recordings: Mapping[str, Recording], rng: np.random.Generator) -> Iterator[Simulated]:
    """Simulate one ramp."""
    legacy, target = recordings[world.legacy], served(world, recordings[world.target])
    for stage in SHARED:
        hours = round(stage.soak.total_seconds() / 3600)
        n = hours * world.units_an_hour
        treated = dealt(stage, n, rng)
        of_legacy = drawn(legacy, n, BLOCK, rng)
        is_one_series = world.legacy == world.target and not world.apart
        of_target = of_legacy if is_one_series else drawn(target, n, BLOCK, rng)
        lost = target.failed[of_target]
        if world.bursts:
            other = recordings[world.bursts].failed
            meets = np.repeat(rng.random(-(-n // world.burst)) < world.mixed, world.burst)[:n]
            lost = lost | (meets & other[drawn(recordings[world.bursts], n, world.burst, rng)])
        failed = np.where(treated, lost, legacy.failed[of_legacy])
        ttft, latency = (
            np.where(failed, np.nan, np.where(treated, slow[of_target], usual[of_legacy]))
            for slow, usual in ((target.ttft_ms, legacy.ttft_ms), (target.latency_ms, legacy.latency_ms))
        )
        units = Units(stage.share, hours, treated, baseline_of(stage, treated, rng))
        bad = {"errors": failed.astype(np.float64), "ttft": ttft, "latency": latency}
        yield Simulated(units, bad, lost.astype(np.float64) - legacy.failed[of_legacy])
