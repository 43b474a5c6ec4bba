"""The few calls to a Kubernetes API server that a batch needs; objects go in and come out in the API's JSON form.

Credentials are those of the pod's service account within a cluster, else of the current context of KUBECONFIG.
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from anven_pipelines.domain.errors import InvalidInput, UnavailableService

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from kubernetes.client import ApiClient, BatchV1Api, CoreV1Api
    from kubernetes.client.exceptions import ApiException

_PATIENCE_S: Final = 20.0
_NOT_FOUND, _CONFLICT, _GONE, _TOO_MANY = 404, 409, 410, 429
_SERVER_ERROR: Final = 500


class LogLine(NamedTuple):
    """A line of a container's output, with its time as the kubelet wrote it (RFC 3339, nanoseconds)."""

    at: str
    text: str


class Pods(NamedTuple):
    """The pods of a Job, and the version of the cluster's state in which they were seen."""

    items: list[dict[str, Any]]
    version: str


class KubernetesApi:
    """One namespace of a cluster.

    Every method raises UnavailableService where the API server cannot be reached or does not work for now, and
    InvalidInput where it refuses: the right is missing, or the object is none that it takes.
    """

    def __init__(self, namespace: str, *, container: str) -> None:
        """Load the credentials; nothing is asked yet.

        Raises:
            InvalidInput: there are none.
        """
        self.namespace = namespace
        self._container = container
        self._client = _client()
        self.is_within_cluster = _is_within_cluster()

    def job(self, name: str) -> dict[str, Any] | None:
        """Return a Job, or None."""
        with self._asks("get", "jobs"):
            return self._found(
                lambda: self._batch.read_namespaced_job(name, self.namespace, _request_timeout=_PATIENCE_S)
            )

    def create_job(self, job: Mapping[str, Any]) -> dict[str, Any] | None:
        """Create a Job and return it as the cluster keeps it; None where one of that name exists."""
        from kubernetes.client.exceptions import ApiException  # noqa: PLC0415 - loads slowly

        with self._asks("create", "jobs"):
            try:
                made = self._batch.create_namespaced_job(self.namespace, job, _request_timeout=_PATIENCE_S)
            except ApiException as error:
                if error.status == _CONFLICT:
                    return None
                raise
            return self._plain(made)

    def delete_job(self, job: Mapping[str, Any]) -> None:
        """Delete this very Job and its pods, which get their grace period; one that is gone is no error."""
        from kubernetes.client.exceptions import ApiException  # noqa: PLC0415 - loads slowly

        name, uid = job["metadata"]["name"], job["metadata"]["uid"]
        options = {"preconditions": {"uid": uid}, "propagationPolicy": "Background"}
        with self._asks("delete", "jobs"):
            try:
                self._batch.delete_namespaced_job(name, self.namespace, body=options, _request_timeout=_PATIENCE_S)
            except ApiException as error:
                if error.status not in {_NOT_FOUND, _CONFLICT}:  # another of that name stands in its place
                    raise

    def pods(self, job: str) -> Pods:
        """Return the pods of a Job, the oldest first."""
        with self._asks("list", "pods"):
            found = self._plain(
                self._core.list_namespaced_pod(
                    self.namespace, label_selector=f"job-name={job}", _request_timeout=_PATIENCE_S
                )
            )
        items = sorted(found["items"], key=lambda pod: (pod["metadata"]["creationTimestamp"], pod["metadata"]["name"]))
        return Pods(items, found["metadata"].get("resourceVersion", ""))

    def warnings(self, uids: Sequence[str]) -> list[dict[str, Any]]:
        """Return the Warning events of these objects, the oldest first."""
        with self._asks("list", "events"):
            events = self._plain(
                self._core.list_namespaced_event(
                    self.namespace, field_selector="type=Warning", _request_timeout=_PATIENCE_S
                )
            )["items"]
        wanted = set(uids)
        mine = [event for event in events if event["involvedObject"].get("uid") in wanted]
        return sorted(mine, key=lambda event: event.get("lastTimestamp") or event["metadata"]["creationTimestamp"])

    def log(self, pod: str, *, since_s: int | None) -> list[LogLine]:
        """Return the output of a pod's worker; nothing where it has not begun, or the pod is gone.

        Args:
            pod: Its name.
            since_s: Only lines of the last so many seconds; all of them where None.
        """
        from kubernetes.client.exceptions import ApiException  # noqa: PLC0415 - loads slowly

        with self._asks("get", "pods/log"):
            try:
                answer = self._core.read_namespaced_pod_log(
                    pod,
                    self.namespace,
                    container=self._container,
                    timestamps=True,
                    **({} if since_s is None else {"since_seconds": since_s}),
                    _preload_content=False,
                    _request_timeout=_PATIENCE_S,
                )
            except ApiException as error:
                if error.status in {400, _NOT_FOUND}:
                    return []
                raise
            text = answer.data.decode("utf-8", errors="replace")
        # Not splitlines(), which takes the carriage returns of progress bars for ends of lines.
        stamped = (line.partition(" ") for line in text.split("\n"))
        return [LogLine(at, said) for at, _, said in stamped if at]

    def wait_for_change(self, job: str, *, version: str, seconds: float) -> None:
        """Return when a pod of the Job changes, when the time is over, or when the connection breaks.

        What changed is not told: whoever waits looks again, so that a missed event costs time and nothing else.
        """
        from kubernetes.watch import Watch  # noqa: PLC0415 - loads slowly

        watch = Watch()
        watch._api_client = self._client  # noqa: SLF001 - its own would check what older clusters leave out
        with self._asks("watch", "pods"):
            for _ in watch.stream(
                self._core.list_namespaced_pod,
                self.namespace,
                label_selector=f"job-name={job}",
                resource_version=version,
                timeout_seconds=max(1, round(seconds)),
                _request_timeout=(_PATIENCE_S, seconds + 5),
            ):
                watch.stop()

    @property
    def _batch(self) -> BatchV1Api:
        from kubernetes.client import BatchV1Api  # noqa: PLC0415 - loads slowly

        return BatchV1Api(self._client)

    @property
    def _core(self) -> CoreV1Api:
        from kubernetes.client import CoreV1Api  # noqa: PLC0415 - loads slowly

        return CoreV1Api(self._client)

    def _found(self, ask: Callable[[], object]) -> dict[str, Any] | None:
        from kubernetes.client.exceptions import ApiException  # noqa: PLC0415 - loads slowly

        try:
            return self._plain(ask())
        except ApiException as error:
            if error.status == _NOT_FOUND:
                return None
            raise

    def _plain(self, thing: object) -> dict[str, Any]:
        plain: dict[str, Any] = self._client.sanitize_for_serialization(thing)
        return plain

    @contextlib.contextmanager
    def _asks(self, verb: str, what: str) -> Iterator[None]:
        """Translate what the client raises."""
        from kubernetes.client.exceptions import ApiException  # noqa: PLC0415 - loads slowly
        from urllib3.exceptions import HTTPError  # noqa: PLC0415 - comes with the client

        try:
            yield
        except ApiException as error:
            said = _message_of(error)
            status = int(error.status or 0)
            if status in {401, 403}:
                message = (
                    f"the Kubernetes API server does not let us {verb} {what} in namespace {self.namespace!r}: {said}; "
                    "bind the Role of k8s/gpu-job-role.yaml to the account"
                )
                raise InvalidInput(message) from error
            if status in {0, _GONE, _TOO_MANY} or status >= _SERVER_ERROR:
                message = f"the Kubernetes API server did not {verb} {what}: {status or ''} {said}"
                raise UnavailableService(message) from error
            message = f"the Kubernetes API server refuses to {verb} {what} in namespace {self.namespace!r}: {said}"
            raise InvalidInput(message) from error
        except (HTTPError, OSError) as error:
            message = f"the Kubernetes API server at {self._client.configuration.host} does not answer: {error}"
            raise UnavailableService(message) from error


def _is_within_cluster() -> bool:
    return bool(os.environ.get("KUBERNETES_SERVICE_HOST")) and not os.environ.get("KUBECONFIG")


def _client() -> ApiClient:
    try:
        from kubernetes import client, config  # noqa: PLC0415 - loads slowly
    except ModuleNotFoundError as error:
        message = "ANVEN_GPU_JOB is set, and the package kubernetes is missing; install anven-pipelines[k8s]"
        raise InvalidInput(message) from error
    settings = client.Configuration()
    try:
        if _is_within_cluster():
            config.load_incluster_config(settings)
        else:
            # The client read KUBECONFIG when it was imported.
            config.load_kube_config(config_file=os.environ.get("KUBECONFIG"), client_configuration=settings)
    except config.ConfigException as error:
        message = f"no credentials for a Kubernetes cluster: {error}; set KUBECONFIG, or run within the cluster"
        raise InvalidInput(message) from error
    settings.retries = False  # whoever asks knows how long to wait, and says so
    settings.client_side_validation = False  # an older cluster leaves out what the newest must have
    return client.ApiClient(settings)


def _message_of(error: ApiException) -> str:
    """Return the message of the API server's Status object, or of the client."""
    try:
        return str(json.loads(error.body)["message"])
    except (KeyError, TypeError, ValueError):
        return str(error.reason)
