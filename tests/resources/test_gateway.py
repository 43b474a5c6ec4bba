"""What is written over a traffic file that a person broke, and what a gateway that follows the file makes of it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import pytest

from anven_pipelines.domain.errors import InvalidInput
from anven_pipelines.domain.traffic import Route, Traffic
from anven_pipelines.domain.traffic_file import UNSEEN, print_traffic
from anven_pipelines.gateway.traffic_source import TrafficSource
from anven_pipelines.resources.gateway import Gateway

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SERVED = Route("a", attempt=1, generation=4, stage=1, share=0.25)
KILLED = Route("b", attempt=1, generation=7, stage=1, share=0.25, killed=True)
BACK = replace(SERVED, generation=5, stage=0, share=0.0)


class Place(NamedTuple):
    """A traffic file with `SERVED` and `KILLED` in force, who writes it and who follows it."""

    file: Path
    writer: Gateway
    follower: TrafficSource

    def edit(self, *routes: Route, torn: bool = False, **bad: object) -> None:
        """Write these routes by hand, with a comma too many or with entries that are none."""
        text = print_traffic(Traffic({each.workload: each for each in routes}))
        document = json.loads(text)
        document["routes"] |= bad
        text = json.dumps(document)
        self.file.write_text(text[:-2] + ",}}" if torn else text)
        self.follower.refresh()

    def in_force(self, workload: str) -> Route:
        """Return what the gateway serves."""
        self.follower.refresh()
        return self.follower.traffic.of(workload)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    file = tmp_path / "traffic.json"
    file.write_text(print_traffic(Traffic({"a": SERVED, "b": KILLED})))
    return Place(file, Gateway(traffic=str(file)), TrafficSource(file))


def roll_back(writer: Gateway) -> None:
    assert writer.publish(BACK)


def kill(writer: Gateway) -> None:
    writer.kill("a")


@pytest.mark.parametrize("write", [roll_back, kill])
@pytest.mark.parametrize("is_torn", [True, False], ids=["a torn file", "its only bad entry"])
def test_nothing_of_another_workload_comes_in_force_out_of_a_bad_file(
    place: Place, write: Callable[[Gateway], None], *, is_torn: bool
) -> None:
    raised = replace(KILLED, killed=False, share=1.0, generation=8)
    if is_torn:
        place.edit(SERVED, raised, torn=True)
    else:
        place.edit(raised, a={"share": "half"})

    write(place.writer)

    assert place.in_force("b") == KILLED
    assert place.in_force("a").killed or place.in_force("a").share == 0
    with pytest.raises(InvalidInput, match="look through the other routes, then remove this entry"):
        place.writer.read()
    document = json.loads(place.file.read_text())
    del document["routes"][UNSEEN]
    place.file.write_text(json.dumps(document))
    assert place.in_force("b") == raised


def test_a_shadow_that_was_raised_in_a_bad_file_keeps_no_workload_from_its_roll_back(place: Place) -> None:
    place.edit(replace(SERVED, shadow=1.0), KILLED, c="share")
    assert place.writer.publish(BACK)
    assert place.in_force("a") == BACK


def test_where_no_other_gives_the_target_anything_the_file_is_good_again(place: Place) -> None:
    place.edit(SERVED, KILLED, torn=True)
    assert place.writer.publish(BACK)
    assert dict(place.writer.read().routes) == {"a": BACK, "b": KILLED}


@pytest.mark.parametrize("said", [replace(SERVED, generation=9), BACK], ids=["a later generation", "the same route"])
def test_what_a_torn_file_says_of_a_workload_keeps_it_from_no_roll_back(place: Place, said: Route) -> None:
    place.edit(said, KILLED, torn=True)
    assert place.in_force("a") == SERVED
    assert place.writer.publish(BACK)
    assert place.in_force("a") == BACK
    assert not place.writer.publish(BACK)


def test_an_overtaken_route_changes_nothing(place: Place) -> None:
    place.edit(replace(SERVED, generation=9), KILLED)
    assert not place.writer.publish(BACK)
