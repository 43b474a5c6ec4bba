"""When a drill is due, and what the commands find of a gateway that is none."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, cast

import dagster as dg

from anven_pipelines.domain.sign_off import SIGNED_OFF, sign_off_stream
from anven_pipelines.schedules import daily_drill

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.pipeline.conftest import Place

NOW = datetime(2026, 11, 20, 5, tzinfo=UTC)
ARM = {"model": "openai/m", "url": "http://127.0.0.1:9/v1"}


def requests(place: Place) -> list[dg.RunRequest | dg.SkipReason]:
    context = dg.build_schedule_context(
        instance=place.instance,
        scheduled_execution_time=NOW,
        resources={"migrations": place.migrations, "state": place.state},
    )
    return list(cast("Iterator[dg.RunRequest | dg.SkipReason]", daily_drill(context)))


def test_every_signed_off_workload_behind_a_gateway_is_drilled_in_a_run_of_its_own(place: Place) -> None:
    gateway = {"gateway": {"legacy": ARM, "target": ARM}}
    place.declare(workload="apart")
    place.declare(workload="unsigned", **gateway)
    place.declare(workload="waived", rollout={"waive": ["drill"]}, **gateway)
    assert isinstance(requests(place)[0], dg.SkipReason)
    for name in ("first", "second"):
        place.declare(workload=name, **gateway)
    for name in ("apart", "waived", "first", "second"):
        place.state.append(stream=sign_off_stream(name), kind=SIGNED_OFF, key="v1", payload={}, now=NOW)
    (place.folder / "migrations" / "broken.yaml").write_text("workload: [")
    found = [each for each in requests(place) if isinstance(each, dg.RunRequest)]
    assert [(each.run_key, each.partition_key) for each in found] == [
        ("first/2026-11-20", "first"),
        ("second/2026-11-20", "second"),
    ]
