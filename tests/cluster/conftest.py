"""The clusters of the tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.cluster.places import Place, local_settings
from tests.conftest import TEST_KUBECONFIG
from tests.fakes.kubernetes_cluster import kubernetes_cluster

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def double(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """The double alone, for what a cluster of 1.20 lacks."""
    with kubernetes_cluster(tmp_path) as (cluster, config):
        monkeypatch.setenv("KUBECONFIG", str(config))
        yield Place(tmp_path, cluster, local_settings(tmp_path, real=False))


@pytest.fixture(params=["double", pytest.param("real", marks=pytest.mark.cluster)])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """Each of the two clusters in turn; Jobs that a test leaves behind are deleted."""
    if request.param == "double":
        yield request.getfixturevalue("double")
        return
    monkeypatch.setenv("KUBECONFIG", TEST_KUBECONFIG)
    real = Place(tmp_path, None, local_settings(tmp_path, real=True))
    yield real
    ours = real.api._batch.list_namespaced_job("default", label_selector="app.kubernetes.io/name=anven-worker")
    for job in ours.items:
        real.api.delete_job({"metadata": {"name": job.metadata.name, "uid": job.metadata.uid}})
