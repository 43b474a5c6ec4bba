"""A process killed with SIGKILL amid the search for a prompt: no answer is paid twice, and the end is the same."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Final

import pytest

from anven_pipelines.domain.canonical import canonical_json
from anven_pipelines.resources.answer_batch import PART_ROWS
from tests.pipeline.conftest import Place, new_place, place_at
from tests.pipeline.test_adapted_prompt import declare, materialize, report, wants_another_form
from tests.scripted_endpoint import Ask, ScriptedEndpoint

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

IN_FLIGHT: Final = 8 + PART_ROWS  # being answered, or answered and not yet on disk
BUDGET: Final = {"calls": 500}
PATIENCE_S: Final = 200.0
PROGRAM: Final = """
import sys
from pathlib import Path
from tests.pipeline.conftest import place_at
from tests.pipeline.test_adapted_prompt import materialize

with place_at(Path(sys.argv[1])) as place:
    [file] = (place.folder / "migrations").iterdir()
    sys.exit(not materialize(place, place.migrations.register(file)).success)
"""


def start(place: Place) -> subprocess.Popen[bytes]:
    """Run the chain up to the adapted prompt in a process of its own."""
    command = [sys.executable, "-c", PROGRAM, str(place.folder)]
    with (place.folder / "said").open("wb") as said:
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=said)


def kill_at(place: Place, endpoint: ScriptedEndpoint, questions: int) -> None:
    """Kill the process once so many questions have come in."""
    process = start(place)
    deadline = time.monotonic() + PATIENCE_S
    while len(endpoint.asks) < questions:
        assert process.poll() is None, f"it ended after {len(endpoint.asks)} of {questions} questions"
        assert time.monotonic() < deadline, f"{len(endpoint.asks)} of {questions} questions came in"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait(30) == -signal.SIGKILL


def times_asked(asks: Sequence[Ask]) -> Counter[str]:
    return Counter(canonical_json([ask.body["messages"], ask.body.get("temperature")]) for ask in asks)


@pytest.mark.timeout(400)
def test_a_search_killed_early_and_while_proving_ends_where_an_undisturbed_one_does(
    tmp_path: Path, empty_mlflow: Path
) -> None:
    with (
        ScriptedEndpoint(wants_another_form) as endpoint,
        place_at(new_place(tmp_path / "plain", empty_mlflow)) as plain,
        place_at(new_place(tmp_path / "killed", empty_mlflow)) as killed,
    ):
        declared = declare(killed, endpoint, budget=BUDGET)
        assert materialize(plain, declare(plain, endpoint, budget=BUDGET)).success
        undisturbed = report(plain)
        assert undisturbed["adapted"], undisturbed["reasons"]
        wanted = times_asked(endpoint.asks)
        assert max(wanted.values()) == 1
        assert wanted.total() == undisturbed["cost"]["calls"]
        [gain] = undisturbed["gains"]
        probes = 2 * sum(count["probes"] for count in undisturbed["safety"]["counts"].values())
        proving = wanted.total() - probes - gain["n"]  # half of the validation items are asked by then
        endpoint.asks.clear()
        for questions in (40, proving):
            kill_at(killed, endpoint, questions)
            assert questions <= len(endpoint.asks) < proving + gain["n"]
        assert materialize(killed, declared).success
        assert report(killed) == undisturbed
        paid = times_asked(endpoint.asks)
        assert paid.keys() == wanted.keys()
        assert paid.total() - wanted.total() <= 2 * IN_FLIGHT
        looks = killed.state.events("prompt/support", "validated")
    assert len(looks) == 1, "the look that was killed and the one that ended are the same"
