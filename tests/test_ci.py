"""`.ci/run` leaves no test out: what a stage runs by its marker stands in the folders that the stage names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
STAGES = {
    marker: folders.split()
    for folders, marker in re.findall(r'"((?:tests/\w+ )+)-m \'?(\w+)', (REPOSITORY / ".ci" / "run").read_text())
}


def test_every_marker_that_the_other_tests_leave_out_has_a_stage() -> None:
    [without] = re.findall(r"-m '(not [^']+)'", (REPOSITORY / ".ci" / "run").read_text())
    assert STAGES.keys() == set(without.removeprefix("not ").split(" and not "))


@pytest.mark.parametrize("marker", STAGES)
def test_its_tests_stand_in_the_folders_of_its_stage(marker: str) -> None:
    marks = {file: marks_in(file) for file in (REPOSITORY / "tests").rglob("*.py")}
    marked = [file for file, found in marks.items() if marker in found]
    assert marked
    for file in marked:
        folders = STAGES["live" if "live" in marks[file] else marker]  # those are run alone, whatever else they need
        assert any(file.is_relative_to(REPOSITORY / folder) for folder in folders), file


def marks_in(file: Path) -> set[str]:
    """Return the markers of stages that a file uses."""
    text = file.read_text()
    return {marker for marker in STAGES if re.search(rf"\bmark\.{marker}\b", text)}
