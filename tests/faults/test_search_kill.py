"""A process killed with SIGKILL amid the search for a prompt: no answer is paid twice, and the end is the same."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

import pytest

from anven_pipelines.domain.canonical import canonical_json
from anven_pipelines.resources.answer_batch import PART_ROWS
from tests.pipeline.conftest import Place, new_place, place_at
from tests.pipeline.test_adapted_prompt import declare, materialize, report, wants_another_form
from tests.pipeline.test_rewritten_prompts import PLANTED, plants_the_rule, wants_the_planted_rule
from tests.scripted_endpoint import Ask, ScriptedEndpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
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


def kill_at(place: Place, come_in: Callable[[], int], wanted: int) -> None:
    """Kill the process once so many questions have come in."""
    process = start(place)
    deadline = time.monotonic() + PATIENCE_S
    while (come := come_in()) < wanted:
        assert process.poll() is None, f"it ended after {come} of {wanted} questions"
        assert time.monotonic() < deadline, f"{come} of {wanted} questions came in"
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
            kill_at(killed, lambda: len(endpoint.asks), questions)
            assert questions <= len(endpoint.asks) < proving + gain["n"]
        assert materialize(killed, declared).success
        assert report(killed) == undisturbed
        paid = times_asked(endpoint.asks)
        assert paid.keys() == wanted.keys()
        assert paid.total() - wanted.total() <= 2 * IN_FLIGHT
        looks = killed.state.events("prompt/support", "validated")
    assert len(looks) == 1, "the look that was killed and the one that ended are the same"


@pytest.mark.timeout(400)
def test_a_rewriting_killed_while_it_asks_and_while_its_prompt_is_tried_ends_where_an_undisturbed_one_does(
    tmp_path: Path, empty_mlflow: Path
) -> None:
    with (
        ScriptedEndpoint(wants_the_planted_rule) as endpoint,
        ScriptedEndpoint(plants_the_rule) as large,
        place_at(new_place(tmp_path / "plain", empty_mlflow)) as plain,
        place_at(new_place(tmp_path / "killed", empty_mlflow)) as killed,
    ):
        rewriting: dict[str, Any] = {
            "strategies": ["gepa"],
            "reflection": {"model": "large", "url": large.url, "calls": 4},
        }
        assert materialize(plain, declare(plain, endpoint, **rewriting)).success
        undisturbed = report(plain)
        assert undisturbed["adapted"], undisturbed["reasons"]
        wanted, rewritten = times_asked(endpoint.asks), len(large.asks)
        endpoint.asks.clear()
        large.asks.clear()
        declared = declare(killed, endpoint, **rewriting)
        kill_at(killed, lambda: len(large.asks), 1)
        kill_at(killed, lambda: sum(PLANTED in repr(ask.body) for ask in tuple(endpoint.asks)), 5)
        assert materialize(killed, declared).success
        assert report(killed) == undisturbed
        paid = times_asked(endpoint.asks)
        assert paid.keys() == wanted.keys()
        assert paid.total() - wanted.total() <= 2 * IN_FLIGHT
        assert len(large.asks) - rewritten <= 1, "the answer to the first was in flight; it is paid once more at most"
