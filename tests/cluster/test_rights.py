"""The Role that ships is enough, and nothing less is."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from kubernetes import client, config, utils

from anven_pipelines.domain.errors import InvalidInput
from tests.cluster.places import REPOSITORY, Place, launched, local_settings, waited
from tests.cluster.test_gpu_job import some_work
from tests.conftest import TEST_KUBECONFIG

if TYPE_CHECKING:
    from collections.abc import Iterator

ACCOUNT = "dagster"
pytestmark = pytest.mark.cluster


@pytest.fixture
def admin(tmp_path: Path) -> Iterator[client.ApiClient]:
    """Make the namespace with an account that has no rights yet."""
    with config.new_client_from_config(TEST_KUBECONFIG) as api:
        core = client.CoreV1Api(api)
        utils.create_from_dict(api, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "anven"}})
        account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": ACCOUNT, "namespace": "anven"}}
        utils.create_from_dict(api, account)
        yield api
        core.delete_namespace("anven")
        waited(
            lambda: "anven" not in [each.metadata.name for each in core.list_namespace().items] or None, "anven stays"
        )


def as_account(admin: client.ApiClient, folder: Path) -> str:
    """Write a kubeconfig with the account's own token."""
    core = client.CoreV1Api(admin)

    def token() -> Any:
        secrets = core.list_namespaced_secret("anven").items
        return next(
            (each.data["token"] for each in secrets if "token" in (each.data or {}) and ACCOUNT in each.metadata.name),
            None,
        )

    encoded = waited(token, "the account has no token")
    written = yaml.safe_load(Path(TEST_KUBECONFIG).read_text())
    written["users"] = [{"name": "account", "user": {"token": base64.b64decode(encoded).decode()}}]
    written["contexts"][0]["context"]["user"] = "account"
    file = folder / "account.json"
    file.write_text(json.dumps(written))
    return str(file)


def test_the_role_that_ships_is_what_is_needed(
    admin: client.ApiClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", as_account(admin, tmp_path))
    place = Place(tmp_path, None, local_settings(tmp_path, real=True) | {"namespace": "anven"})
    settings, work = place.settings_with(python=place.script("print('done')")), some_work()
    with pytest.raises(InvalidInput, match=r"does not let us get jobs in namespace 'anven'.*gpu-job-role.yaml"):
        launched(settings, work)
    for rule in yaml.safe_load_all((REPOSITORY / "k8s" / "gpu-job-role.yaml").read_text()):
        utils.create_from_dict(admin, rule)
    _, said = launched(settings, work)
    assert any("is done" in line for line in said)
