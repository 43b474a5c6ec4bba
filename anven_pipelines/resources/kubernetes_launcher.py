"""Runs a batch as a Kubernetes Job and stays with it: through restarts of its pods, of the API server and of itself.

Nothing here is remembered between looks but what was already told: each look reads the cluster's state afresh, so a
broken watch, a missed event or a new process costs a few seconds and loses nothing. Answers do not come through here:
the workers make them durable in the artifact store.

Without `from __future__ import annotations`: Dagster reads the annotations of what it is given.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, NamedTuple, NoReturn, TypeVar, cast

import dagster as dg
from dagster_pipes import PIPES_PROTOCOL_VERSION_FIELD, PipesDefaultMessageWriter, PipesMessage

from anven_pipelines.domain import job_status
from anven_pipelines.domain.errors import InvalidInput, UnavailableService
from anven_pipelines.domain.gpu_job import CONTAINER, JOB_URI, GpuJobSettings, Work, job_of
from anven_pipelines.resources.kubernetes_api import KubernetesApi, LogLine

ATTEMPTS: Final = 3  # of a Job that somebody deletes
LOOK_EVERY_S: Final = 5.0
UNREACHABLE_S: Final = 600.0
"""How long the API server may be away: an upgrade of a control plane takes minutes, and the Job runs on meanwhile."""
_GOING_S: Final = 120.0
_OVERLAP_S: Final = 30

Found = TypeVar("Found")


class KubernetesLauncher:
    """Runs batches with a deployment's settings."""

    def __init__(self, settings: GpuJobSettings, api: KubernetesApi | None = None) -> None:
        """Take the cluster that KUBECONFIG or the pod names, where none is given."""
        self._settings = settings
        self._api = api or KubernetesApi(settings.namespace, container=CONTAINER)

    def require_reachable(self) -> None:
        """Look for a Job that does not exist: it shows that the cluster answers, and lets us look.

        Raises:
            InvalidInput: there are no credentials, or the right is missing.
            UnavailableService: the API server does not answer.
        """
        self._api.job("anven-preflight")

    def launch(self, context: dg.AssetExecutionContext, work: Work, *, job_uri: str) -> list[dict[str, Any]]:
        """Run the Job to its end, or go along with the one that runs already; return the workers' figures.

        Raises:
            InvalidInput: the cluster refuses the Job, or a worker finds it impossible.
            UnavailableService: no pod could run for too long, the Job failed, or the API server was away too long.
        """
        reader = _PodLogs()
        with dg.open_pipes_session(
            context=context.op_execution_context,  # on the other, Dagster 1.13 calls what it deprecates
            context_injector=dg.PipesEnvContextInjector(),
            message_reader=reader,
        ) as session:
            job = job_of(self._settings, work, job_uri=job_uri, environment=session.get_bootstrap_env_vars())
            watched = _Watched(self._api, self._settings, context.log, reader)
            try:
                watched.run(job)
            except (UnavailableService, InvalidInput):
                raise
            except BaseException:  # the run is cancelled
                self._cancel(context.log, work.job_name)
                raise
        return [each for each in session.get_custom_messages() if isinstance(each, dict)]

    def _cancel(self, log: dg.DagsterLogManager, name: str) -> None:
        try:
            self._api.delete_job(name)
            log.info("cancelled: job %s is deleted, and what it answered is kept", name)
        except (UnavailableService, InvalidInput) as error:
            log.warning("job %s runs on, as it could not be deleted: %s", name, error)


class _PodLogs(dg.PipesMessageReader):
    """Brings what the workers print to Dagster: their messages to the run's log, the rest to the step's own output."""

    def __init__(self) -> None:
        self._handler: dg.PipesMessageHandler | None = None
        self._opened = False

    @contextmanager
    def read_messages(self, handler: dg.PipesMessageHandler) -> Iterator[dict[str, Any]]:
        self._handler = handler
        try:
            yield {PipesDefaultMessageWriter.STDIO_KEY: PipesDefaultMessageWriter.STDERR}
        finally:
            if self._opened:  # several pods, and their restarts, each closed a session of their own
                handler.handle_message(cast("PipesMessage", {"method": "closed", "params": None}))

    def no_messages_debug_text(self) -> str:
        return "The messages are read from the logs of the Job's pods."

    def take(self, line: str) -> None:
        """Pass one line on."""
        message = _message_in(line)
        if message is None:
            print(line, flush=True)  # noqa: T201 - Dagster keeps the step's output
        elif self._handler is not None and message["method"] != "closed":
            self._opened = self._opened or message["method"] == "opened"
            self._handler.handle_message(message)


def _message_in(line: str) -> PipesMessage | None:
    if not line.startswith("{"):
        return None
    try:
        message = json.loads(line)
    except ValueError:
        return None
    if isinstance(message, dict) and PIPES_PROTOCOL_VERSION_FIELD in message:
        return cast("PipesMessage", message)
    return None


class _Look(NamedTuple):
    """What one look found."""

    job: dict[str, Any] | None
    pods: list[dict[str, Any]]
    warnings: list[str]
    version: str


class _Printed(NamedTuple):
    """The last lines of a pod's output that were read, and when, by the monotonic clock."""

    lines: list[LogLine]
    read_at: float


class _Watched:
    """One Job, looked at until it ends."""

    def __init__(
        self, api: KubernetesApi, settings: GpuJobSettings, log: dg.DagsterLogManager, reader: _PodLogs
    ) -> None:
        self._api, self._settings, self._log, self._reader = api, settings, log, reader
        self._told: dict[str, str] = {}
        self._read: dict[str, _Printed] = {}
        self._waits_since: float | None = None

    def run(self, job: Mapping[str, Any]) -> None:
        """See the Job through."""
        name = job["metadata"]["name"]
        for _ in range(ATTEMPTS):
            found = self._kept_trying(lambda: self._found_or_created(job))
            if self._ends(name, found["metadata"]["uid"]):
                return
            self._log.warning("job %s was deleted by somebody else; it is created again and asks what is left", name)
        message = f"job {name} was deleted {ATTEMPTS} times by somebody else; what it answered is kept"
        raise UnavailableService(message)

    def _found_or_created(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """Go along with the Job of that name that runs or is done; make one otherwise."""
        name, waits_until = wanted["metadata"]["name"], time.monotonic() + _GOING_S
        while time.monotonic() < waits_until:
            found = self._api.job(name)
            if found is None:
                made = self._api.create_job(wanted)
                if made is not None:
                    self._require_as_wanted(wanted, made)
                    self._log.info("job %s/%s created", self._api.namespace, name)
                    return made
            elif job_status.is_going(found):
                time.sleep(0.5)
            elif (ended := job_status.ended(found)) and ended.outcome == "failed":
                self._log.info("job %s failed before (%s); it is deleted and created again", name, ended.reason)
                self._api.delete_job(name)
            else:
                self._go_along(wanted, found)
                return found
        message = f"job {name} has been in deletion for {_GOING_S:.0f} s; look at its finalizers"
        raise UnavailableService(message)

    def _go_along(self, wanted: Mapping[str, Any], found: Mapping[str, Any]) -> None:
        uri = (found["metadata"].get("annotations") or {}).get(JOB_URI)
        other = "" if uri == wanted["metadata"]["annotations"][JOB_URI] else ", with other settings"
        state = "is done" if job_status.ended(found) else "runs already"
        self._log.info("job %s %s%s; this step goes along with it", found["metadata"]["name"], state, other)

    def _require_as_wanted(self, wanted: Mapping[str, Any], made: Mapping[str, Any]) -> None:
        """Refuse a cluster that dropped what it does not know: each pod would answer the first share only."""
        mode = wanted["spec"].get("completionMode")
        if mode and made["spec"].get("completionMode") != mode:
            self._api.delete_job(made["metadata"]["name"])
            message = "this cluster knows no Indexed Jobs (Kubernetes 1.24 has them); set `target.pods: 1`"
            raise InvalidInput(message)

    def _ends(self, name: str, uid: str) -> bool:
        """Look until the Job ends well; False where it is gone."""
        while True:
            job, pods, warnings, version = self._kept_trying(partial(self._look, name, uid))
            if job is None or job["metadata"]["uid"] != uid:
                return False
            if (why := job_status.refused(pods)) is not None:
                self._api.delete_job(name)
                message = f"the worker cannot do the job: {why}"
                raise InvalidInput(message)
            if ended := job_status.ended(job):
                if ended.outcome == "complete":
                    return True
                _fail(name, ended.reason, pods)
            self._require_a_start(job, pods, warnings)
            self._wait(name, version)

    def _look(self, name: str, uid: str) -> _Look:
        """See how it stands and tell what is new; the logs come last, so that an ended Job's are whole."""
        job, pods = self._api.job(name), self._api.pods(name)
        mine = [pod for pod in pods.items if _belongs(pod, uid)]
        warnings = self._warnings([uid, *(pod["metadata"]["uid"] for pod in mine)])
        self._tell(mine)
        for pod in mine:
            self._read_log(pod)
        return _Look(job, mine, warnings, pods.version)

    def _require_a_start(self, job: Mapping[str, Any], pods: list[dict[str, Any]], warnings: list[str]) -> None:
        """Give up where no pod has begun for too long, with the cluster's own reason."""
        held = None if job_status.is_queued(job) else job_status.what_holds_it_up(pods, warnings)
        if held is None:
            self._waits_since = None
            return
        now = time.monotonic()
        self._waits_since = self._waits_since if self._waits_since is not None else now
        limit = self._settings.pending.total_seconds()
        if now - self._waits_since > limit:
            self._api.delete_job(job["metadata"]["name"])
            message = (
                f"job {job['metadata']['name']} had no running pod for {limit:g} s: {held}; it is deleted, and "
                "what was answered is kept. Make room, mend `node_selector` and `tolerations`, or raise `pending`"
            )
            raise UnavailableService(message)

    def _warnings(self, uids: list[str]) -> list[str]:
        """Return what the cluster warns of, and tell it once."""
        said = []
        for event in self._api.warnings(uids):
            line = f"{event['involvedObject']['name']}: {event.get('reason')}: {event.get('message')}"
            said.append(line)
            self._tell_once(f"event {event['metadata']['name']}", line, warns=True)
        return said

    def _tell(self, pods: list[dict[str, Any]]) -> None:
        for pod in pods:
            failed = job_status.phase(pod) == "Failed"
            self._tell_once(pod["metadata"]["uid"], job_status.describe(pod), warns=failed)
        here = {pod["metadata"]["uid"] for pod in pods}
        for uid, said in list(self._told.items()):
            if uid not in here and not uid.startswith("event ") and " runs on " in said:
                self._tell_once(
                    uid, f"{said.partition(' runs on ')[0]} is gone: deleted, or lost with its node", warns=True
                )

    def _tell_once(self, key: str, line: str, *, warns: bool) -> None:
        if self._told.get(key) != line:
            self._told[key] = line
            (self._log.warning if warns else self._log.info)(line)

    def _read_log(self, pod: Mapping[str, Any]) -> None:
        """Pass on what a pod has printed since the last look; each line once, whatever reconnects."""
        if job_status.phase(pod) == "Pending":
            return
        uid, now = pod["metadata"]["uid"], time.monotonic()
        before = self._read.get(uid)
        # The age is by our own clock: what came after the last reading is younger, whatever the node's clock shows.
        since_s = None if before is None else int(now - before.read_at) + _OVERLAP_S
        try:
            lines = self._api.log(pod["metadata"]["name"], since_s=since_s)
        except UnavailableService as error:  # the node's kubelet keeps the output, and the node may be lost
            self._tell_once(f"log {uid}", f"{job_status.pod_name(pod)}: its output cannot be read: {error}", warns=True)
            return
        for line in lines[_overlap(before.lines, lines) if before else 0 :]:
            self._reader.take(line.text)
        if lines:
            self._read[uid] = _Printed(lines, now)

    def _wait(self, name: str, version: str) -> None:
        try:
            self._api.wait_for_change(name, version=version, seconds=LOOK_EVERY_S)
        except UnavailableService:
            time.sleep(1.0)

    def _kept_trying(self, ask: Callable[[], Found]) -> Found:
        """Ask again while the API server is away: the Job runs on without it."""
        gives_up_at, told = time.monotonic() + UNREACHABLE_S, False
        while True:
            try:
                return ask()
            except UnavailableService as error:
                if time.monotonic() > gives_up_at:
                    message = f"{error}; given up after {UNREACHABLE_S:.0f} s. The Job runs on: run the step again"
                    raise UnavailableService(message) from error
                if not told:
                    self._log.warning("%s; trying again", error)
                    told = True
                time.sleep(1.0)


def _belongs(pod: Mapping[str, Any], uid: str) -> bool:
    return any(owner.get("uid") == uid for owner in pod["metadata"].get("ownerReferences") or [])


def _overlap(before: list[LogLine], lines: list[LogLine]) -> int:
    """Return how many of the lines were read before: all up to the last one's time, and as many at that time."""
    last = before[-1].at
    at_last = sum(line.at == last for line in before)
    earlier = sum(line.at < last for line in lines)
    return min(len(lines), earlier + at_last)


def _fail(name: str, reason: str, pods: list[dict[str, Any]]) -> NoReturn:
    whys = "".join(f"; {why}" for why in [*job_status.failures(pods)][-3:])
    message = f"job {name} failed: {reason}{whys}; what it answered is kept, and the next run asks only what is missing"
    raise UnavailableService(message)
