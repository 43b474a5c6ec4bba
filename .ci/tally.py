"""Totals JUnit reports: names every skipped test, then prints `N passed, N failed`.

A report that is missing, a failed test and a skipped one each fail the run: what was not run has not passed.
"""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree as ET


def main(reports: list[Path]) -> int:
    """Print the total; return the exit status."""
    missing = [report for report in reports if not report.exists()]
    cases = [case for report in reports if report.exists() for case in ET.parse(report).iter("testcase")]
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [case for case in cases if case.find("skipped") is not None]
    for report in missing:
        print(f"No report: {report.name}; its stage did not get as far as the tests")
    for case in skipped:
        print(f"Skipped: {case.get('classname')}::{case.get('name')}")
    print(f"{len(cases) - len(failed) - len(skipped)} passed, {len(failed)} failed")
    return 1 if missing or failed or skipped else 0


if __name__ == "__main__":
    sys.exit(main([Path(argument) for argument in sys.argv[1:]]))
