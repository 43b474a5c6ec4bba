"""How long the demo takes and how much memory it needs, with every process it starts.

    python benchmarks/demo.py [--quick] [--json]

Runs `anven demo` in an empty folder and adds up the proportional set size (pages shared by several processes count
once) of its whole process tree, ten times a second. The quick run sends fewer calls and reaches one verdict.
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

SECONDS_BETWEEN = 0.1


def main() -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument(
        "--quick", action="store_true", help="400 calls and a target that is made worse, one verdict instead of two"
    )
    options.add_argument("--json", action="store_true", help="print one JSON object")
    chosen = options.parse_args()
    figures = measure(["--calls", "400", "--break", "cost"] if chosen.quick else [])
    if chosen.json:
        print(json.dumps(figures))
        return
    print(f"{figures['verdict']} after {figures['seconds']:.0f} s on {figures['cores']} cores")
    print(f"peak memory {figures['peak_mb']:,.0f} MB in {figures['processes_at_peak']} processes")


def measure(words: list[str]) -> dict[str, float | int | str]:
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
        verdict = json.loads(result.read_text(encoding="utf-8"))["verdict"]
    return {
        "verdict": verdict,
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
