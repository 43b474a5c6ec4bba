"""How long the demo takes, how much memory it needs with every process it starts, and how often it ends with GO.

    python benchmarks/demo.py [--quick] [--json] [--demos N]

Runs `anven demo` in an empty folder, each time with another seed of its traffic, and adds up the proportional set size
(pages shared by several processes count once) of its whole process tree, ten times a second. The quick run sends fewer
calls and reaches one verdict. The gain of each prompt is that on the demo's own validation items; `kept` is the share
of the legacy model's mean score that the adapted target keeps on sealed items, with its interval.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

FIRST_SEED = 2026  # that of the demo itself
SECONDS_BETWEEN = 0.1


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument(
        "--quick", action="store_true", help="400 calls and a target that is made worse, one verdict instead of two"
    )
    options.add_argument("--json", action="store_true", help="print one JSON object")
    options.add_argument("--demos", type=int, default=1, help="how many, one after the other")
    chosen = options.parse_args()
    words = ["--calls", "400", "--break", "cost"] if chosen.quick else []
    runs = []
    for seed in range(FIRST_SEED, FIRST_SEED + chosen.demos):
        runs.append(measure([*words, "--seed", str(seed)]))
        if not chosen.json:
            print("\n".join(lines(runs[-1], seed=seed)), flush=True)
    go = sum(run["verdict"] == "GO" for run in runs)
    if chosen.json:
        print(json.dumps({"go": go, "demos": len(runs), "runs": runs}))
    elif len(runs) > 1:
        print(f"{go} of {len(runs)} ended with GO")


def lines(run: dict[str, Any], *, seed: int) -> list[str]:
    """Say how a demo went."""
    kept = "{:.3f} [{:.3f}, {:.3f}]".format(*run["kept"]) if run["kept"] else "unknown"
    found = [
        f"  {name}: {each['before']:.3f} to {each['after']:.3f}, {'proven' if each['proven'] else 'not proven'}, "
        f"{each['calls']} calls"
        for name, each in run["gains"].items()
    ]
    return [
        f"seed {seed}: {run['verdict']} after {run['seconds']:.0f} s on {run['cores']} cores; kept {kept}",
        *found,
        f"  peak memory {run['peak_mb']:,.0f} MB in {run['processes_at_peak']} processes",
    ]


def measure(words: list[str]) -> dict[str, Any]:
    """Run the demo and return its figures."""
    began, peak_mb, processes = time.monotonic(), 0.0, 0
    with tempfile.TemporaryDirectory() as folder:
        result, output = Path(folder) / "result.json", Path(folder) / "output.txt"
        command = [sys.executable, "-m", "anven_pipelines.cli", "demo", "--json", *words]
        environment = {**os.environ, "ANVEN_HOME": str(Path(folder) / "home")}
        with result.open("wb") as stdout, output.open("wb") as stderr:
            demo = subprocess.Popen(command, cwd=folder, env=environment, stdout=stdout, stderr=stderr)
        while demo.poll() is None:
            tree = family(demo.pid)
            used = sum(megabytes(pid) for pid in tree)
            if used > peak_mb:
                peak_mb, processes = used, len(tree)
            time.sleep(SECONDS_BETWEEN)
        if demo.returncode > 1:
            sys.exit(output.read_text(encoding="utf-8"))
        told = json.loads(result.read_text(encoding="utf-8"))
    quality = list(told["verdicts"].values())[-1]["quality"]
    found = told["adaptation"] or {"gains": [], "searched": {}}
    return {
        "verdict": told["verdict"],
        "kept": quality["ratio"] and [quality["ratio"], *quality["ratio_interval"]],
        "gains": {
            gain["template"]: {
                **{name: gain[name] for name in ("before", "after", "proven")},
                "calls": found["searched"][gain["template"]],
            }
            for gain in found["gains"]
        },
        "seconds": time.monotonic() - began,
        "peak_mb": peak_mb,
        "processes_at_peak": processes,
        "cores": os.cpu_count() or 0,
    }


def family(root: int) -> list[int]:
    """Return a process and its descendants."""
    parents: dict[int, int] = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(FileNotFoundError, ProcessLookupError):
            fields = (process / "stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
            parents[int(process.name)] = int(fields[1])
    found, last = {root}, set[int]()
    while found != last:
        last = set(found)
        found |= {pid for pid, parent in parents.items() if parent in found}
    return sorted(found)


def megabytes(pid: int) -> float:
    """Return the proportional set size of a process; 0 when it has ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024 / 1e6
    return 0.0


if __name__ == "__main__":
    main()
