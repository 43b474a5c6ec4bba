"""How long the code location takes to load, beside `import dagster` alone.

    python benchmarks/code_location_load.py [--quick] [--json]

Each round starts fresh interpreters, one after the other, so that both meet the same load on the machine. Every step
of a run is a process that loads the code location again: the difference is paid per step.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Final

CASES: Final = {
    "python alone": "",
    "import dagster": "import dagster",
    "definitions": "from anven_pipelines.definitions import definitions; definitions()",
}


def main() -> None:
    """Time the cases and print them."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--json", action="store_true", help="print one JSON object")
    options.add_argument("--quick", action="store_true", help="3 rounds instead of 15")
    chosen = options.parse_args()
    medians = measure(rounds=3 if chosen.quick else 15)
    dagster, ours = medians["import dagster"], medians["definitions"]
    figures = {
        **{f"{name.replace(' ', '_')}_s": round(seconds, 3) for name, seconds in medians.items()},
        "more_than_dagster_s": round(ours - dagster, 3),
        "ratio_to_dagster": round(ours / dagster, 2),
    }
    if chosen.json:
        print(json.dumps(figures))
        return
    for name, seconds in medians.items():
        print(f"{name:<16} {seconds:6.2f} s")
    print(
        f"definitions take {figures['more_than_dagster_s']:.2f} s more than dagster alone, {ours / dagster:.2f} times"
    )


def measure(*, rounds: int) -> dict[str, float]:
    """Return the median seconds of each case; a first round warms the disk cache and the bytecode and is left out."""
    taken: dict[str, list[float]] = {name: [] for name in CASES}
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "ANVEN_HOME": home, "PYTHONWARNINGS": "ignore"}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        for round_number in range(rounds + 1):
            for name, code in CASES.items():
                begun = time.perf_counter()
                subprocess.run([sys.executable, "-c", code], env=environment, check=True)
                if round_number:
                    taken[name].append(time.perf_counter() - begun)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


if __name__ == "__main__":
    main()
