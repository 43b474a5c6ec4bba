"""MLflow's evaluation datasets: one of each name."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from anven_pipelines.domain.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mlflow import MlflowClient
    from mlflow.entities import EvaluationDataset


@contextmanager
def global_address(tracking_uri: str) -> Iterator[None]:
    """Set MLflow's global address, which is where its datasets look for their store."""
    import mlflow  # noqa: PLC0415 - loaded by now

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(tracking_uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before)


def write_dataset(
    client: MlflowClient, name: str, experiment_id: str, records: list[dict[str, Any]], tags: Mapping[str, str]
) -> str:
    """Make an evaluation dataset, or complete the one of that name; return its id."""
    found = _datasets_named(client, name)
    dataset = found[0] if found else client.create_dataset(name, experiment_id=experiment_id, tags=dict(tags))
    dataset.merge_records(records)
    return str(dataset.dataset_id)


def read_dataset(client: MlflowClient, name: str) -> list[dict[str, Any]]:
    """Return the records of the evaluation dataset of a name, in the order of their ids.

    Raises:
        InvalidInput: there is none, or several.
    """
    found = _datasets_named(client, name)
    if len(found) != 1:
        message = f"MLflow has {len(found)} evaluation datasets named {name!r}; one is needed"
        raise InvalidInput(message)
    records = [record.to_dict() for record in found[0].records]
    return sorted(records, key=lambda record: str(record["inputs"].get("id")))


def _datasets_named(client: MlflowClient, name: str) -> list[EvaluationDataset]:
    quoted = name.replace("'", "\\'")
    return [each for each in client.search_datasets(filter_string=f"name = '{quoted}'") if each.name == name]
