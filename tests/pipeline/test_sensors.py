"""Files become partitions and runs: once, again when they change, and never at the cost of another workload."""

from __future__ import annotations

import dagster as dg

from anven_pipelines.sensors.log_arrival import declared_partitions, log_arrival
from tests.pipeline.conftest import Place, logged_call


def tick(place: Place, sensor: dg.SensorDefinition) -> dg.SensorResult:
    with dg.instance_for_test() as instance:
        context = dg.build_sensor_context(instance, resources={"migrations": place.migrations})
        result = sensor(context) if sensor is log_arrival else sensor(migrations=place.migrations)
    assert isinstance(result, dg.SensorResult)
    return result


def requested(tick_data: dg.SensorResult) -> dict[str, list[str]]:
    requests = tick_data.dynamic_partitions_requests or []
    return {request.partitions_def_name: sorted(request.partition_keys) for request in requests}


def test_declared_workloads_and_their_log_days_become_partitions(place: Place) -> None:
    place.write_log([logged_call(1)], "log-2026-10-05.jsonl")
    place.write_log([logged_call(2)], "log-without-day.jsonl")
    place.declare(workload="one")
    place.declare(workload="two")
    assert requested(tick(place, declared_partitions)) == {
        "workload": ["one", "two"],
        "log_day": ["2026-10-05", "undated"],
    }


def test_a_broken_file_is_named_and_takes_nothing_else_down(place: Place) -> None:
    place.write_log([logged_call(1)])
    place.declare(workload="one")
    place.declare(workload="lost", legacy={"model": "m", "logs": "../gone-*.jsonl"})
    (place.folder / "migrations" / "broken.yaml").write_text("workload: [")
    data = tick(place, declared_partitions)
    assert requested(data)["workload"] == ["lost", "one"]
    assert isinstance(data.skip_reason, dg.SkipReason)
    assert "broken.yaml" in str(data.skip_reason.skip_message)
    assert "gone-*.jsonl" in str(data.skip_reason.skip_message)


def test_an_empty_deployment_is_no_error(place: Place) -> None:
    assert requested(tick(place, declared_partitions)) == {"workload": [], "log_day": []}


def test_a_day_is_read_once_and_again_when_a_file_of_it_changes(place: Place) -> None:
    place.write_log([logged_call(1)], "log-2026-10-05.jsonl")
    place.write_log([logged_call(2)], "log-2026-10-06.jsonl")
    place.declare()
    first, second = tick(place, log_arrival), tick(place, log_arrival)
    keys = [[request.run_key for request in each.run_requests or []] for each in (first, second)]
    assert len(keys[0]) == 2
    assert keys[0] == keys[1]
    place.write_log([logged_call(2), logged_call(3)], "log-2026-10-06.jsonl")
    third = [request.run_key for request in tick(place, log_arrival).run_requests or []]
    assert third[0] == keys[0][0]
    assert third[1] != keys[0][1]
