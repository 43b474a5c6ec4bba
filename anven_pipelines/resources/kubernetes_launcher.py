"""Runs a batch as a Kubernetes Job and stays with it: through restarts of its pods, of the API server and of itself.

Nothing here is remembered between looks but what was already told: each look reads the cluster's state afresh, so a
broken watch, a missed event or a new process costs a few seconds and loses nothing. Answers do not come through here:
the workers make them durable in the artifact store.

Without `from __future__ import annotations`: Dagster reads the annotations of what it is given.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, NamedTuple, NoReturn, TypeVar

import dagster as dg
from dagster._core.errors import DagsterExecutionInterruptedError

from anven_pipelines.domain import job_status
from anven_pipelines.domain.errors import InvalidInput, UnavailableService
from anven_pipelines.domain.gpu_job import CONTAINER, GpuJobSettings, Work, job_of, lacking
from anven_pipelines.resources.kubernetes_api import KubernetesApi
from anven_pipelines.resources.pod_logs import PodLogs

ATTEMPTS: Final = 3  # of a Job that somebody deletes
LOOK_EVERY_S: Final = 5.0
UNREACHABLE_S: Final = 600.0
"""How long the API server may be away: an upgrade of a control plane takes minutes, and the Job runs on meanwhile."""
_GOING_S: Final = 120.0
"""How long an earlier Job and its pods may take to go."""
_CANCELLED: Final = (dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED)

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
            InvalidInput: there are no credentials, or a right is missing.
            UnavailableService: the API server does not answer.
        """
        self._api.job("anven-preflight")
        self._api.pods("anven-preflight")

    def launch(self, context: dg.AssetExecutionContext, work: Work, *, job_uri: str) -> list[dict[str, Any]]:
        """Run the Job to its end, or go along with the one that runs already; return the workers' figures.

        Raises:
            InvalidInput: the cluster refuses the Job, or a worker finds it impossible.
            UnavailableService: no pod could run for too long, the Job failed, or the API server was away too long.
        """
        logs = PodLogs()
        with dg.open_pipes_session(
            context=context.op_execution_context,  # on the other, Dagster 1.13 calls what it deprecates
            context_injector=dg.PipesEnvContextInjector(),
            message_reader=logs,
        ) as session:
            job = job_of(self._settings, work, job_uri=job_uri, environment=session.get_bootstrap_env_vars())
            try:
                _Watched(self._api, self._settings, context.log, logs).run(job)
            except (KeyboardInterrupt, DagsterExecutionInterruptedError):
                self._interrupted(context, work.job_name)
                raise
            except InvalidInput:  # nobody would watch it
                self._delete(context.log, work.job_name, why="it cannot be gone along with")
                raise
        return [each for each in session.get_custom_messages() if isinstance(each, dict)]

    def _interrupted(self, context: dg.AssetExecutionContext, name: str) -> None:
        """Delete the Job of a cancelled run; where only this pod has to go, the next one goes along with the Job."""
        run = context.instance.get_run_by_id(context.run.run_id)
        if self._api.is_within_cluster and not (run and run.status in _CANCELLED):
            context.log.info("this step ends and job %s runs on; the step that starts again goes along with it", name)
            return
        self._delete(context.log, name, why="cancelled")

    def _delete(self, log: dg.DagsterLogManager, name: str, *, why: str) -> None:
        try:
            job = self._api.job(name)
            if job is not None:
                self._api.delete_job(job)
                log.info("%s: job %s is deleted, and what it answered is kept", why, name)
        except (UnavailableService, InvalidInput) as error:
            log.warning("job %s runs on, as it could not be deleted: %s", name, error)


class _Look(NamedTuple):
    """What one look found."""

    job: dict[str, Any] | None
    pods: list[dict[str, Any]]
    warnings: list[str]
    version: str


class _Watched:
    """One Job, looked at until it ends."""

    def __init__(self, api: KubernetesApi, settings: GpuJobSettings, log: dg.DagsterLogManager, logs: PodLogs) -> None:
        self._api, self._settings, self._log, self._logs = api, settings, log, logs
        self._told: dict[str, str] = {}
        self._waits_since: float | None = None

    def run(self, job: Mapping[str, Any]) -> None:
        """See the Job through."""
        name = job["metadata"]["name"]
        for _ in range(ATTEMPTS):
            found = self._found_or_created(job)
            if self._ends(name, found["metadata"]["uid"]):
                return
            self._log.warning("job %s was deleted by somebody else; it is created again and asks what is left", name)
        message = f"job {name} was deleted {ATTEMPTS} times by somebody else; what it answered is kept"
        raise UnavailableService(message)

    def _found_or_created(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """Go along with the Job of that name that runs; else make one, once the pods of an earlier one are gone."""
        name, waits_until = wanted["metadata"]["name"], time.monotonic() + _GOING_S
        while True:
            is_patient = time.monotonic() < waits_until
            found = self._kept_trying(partial(self._next, wanted, waits_for_pods=is_patient))
            if found is not None:
                return found
            if not is_patient:
                message = f"job {name} has been in deletion for {_GOING_S:.0f} s; look at its finalizers"
                raise UnavailableService(message)
            time.sleep(0.5)

    def _next(self, wanted: Mapping[str, Any], *, waits_for_pods: bool) -> dict[str, Any] | None:
        """Do the next thing towards a Job that runs; None where it takes time."""
        name = wanted["metadata"]["name"]
        found = self._api.job(name)
        if found is None:
            if waits_for_pods and any(job_status.is_active(pod) for pod in self._api.pods(name).items):
                return None  # they answer until their grace period ends, and would be asked the same
            made = self._api.create_job(wanted)
            if made is not None:
                self._log.info("job %s/%s created", self._api.namespace, name)
                self._require_as_wanted(wanted, made)
            return made
        if job_status.is_going(found):
            return None
        if (ended := job_status.ended(found)) is not None:
            # Something is left to ask, or nobody would be here: another Job has to ask it.
            self._log.info(
                "job %s ended before (%s); it is deleted and created again", name, ended.reason or "complete"
            )
            self._api.delete_job(found)
            return None
        self._require_as_wanted(wanted, found)
        noted = found["metadata"].get("annotations") or {}
        same = wanted["metadata"]["annotations"].items() <= noted.items()
        if not same and all(job_status.phase(pod) == "Pending" for pod in self._api.pods(name).items):
            self._log.info("job %s waits with other settings; it is deleted and created again", name)
            self._api.delete_job(found)
            return None
        other = "" if same else ", with other settings,"
        self._log.info("job %s runs already%s; this step goes along with it", name, other)
        return found

    def _require_as_wanted(self, wanted: Mapping[str, Any], made: Mapping[str, Any]) -> None:
        """Refuse a cluster that dropped what it does not know and we cannot do without.

        Raises:
            InvalidInput: it did; whoever catches it deletes the Job.
        """
        needed, missed = lacking(wanted, made)
        if needed:
            raise InvalidInput(needed)
        if missed:
            self._tell_once("missed", missed, warns=True)

    def _ends(self, name: str, uid: str) -> bool:
        """Look until the Job ends well; False where it is gone."""
        while True:
            job, pods, warnings, version = self._kept_trying(partial(self._look, name, uid))
            if job is None or job["metadata"]["uid"] != uid:
                return False
            if (why := job_status.refused(pods)) is not None:
                message = f"the worker cannot do the job: {why}"
                raise InvalidInput(message)
            if (why := job_status.cannot_start(pods)) is not None:
                message = f"job {name} can never run: {why}; mend `image` and `image_pull_policy` in the settings"
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
            try:
                self._logs.read(self._api, pod)
            except (UnavailableService, InvalidInput) as error:  # its node may be lost, and the output with it
                said = f"{job_status.pod_name(pod)}: its output cannot be read: {error}"
                self._tell_once(f"log {pod['metadata']['uid']}", said, warns=True)
        return _Look(job, mine, warnings, pods.version)

    def _require_a_start(self, job: Mapping[str, Any], pods: list[dict[str, Any]], warnings: list[str]) -> None:
        """Give up where no pod has run for too long, with the cluster's own reason."""
        name = job["metadata"]["name"]
        if job_status.is_queued(job):
            self._tell_once(
                "queue", f"job {name} waits in the queue {self._settings.queue!r} for its quota", warns=False
            )
            self._waits_since = None
            return
        held = job_status.what_holds_it_up(pods, warnings)
        if held is None:
            self._waits_since = None
            return
        now = time.monotonic()
        self._waits_since = self._waits_since if self._waits_since is not None else now
        limit = self._settings.pending.total_seconds()
        if now - self._waits_since > limit:
            self._api.delete_job(job)
            mend = (
                "Mend `image` and `image_pull_policy`"
                if "Image" in held
                else "Make room, mend `node_selector` and `tolerations`, or raise `pending`"
            )
            message = (
                f"job {name} had no running pod for {limit:g} s: {held}; it is deleted, and what was answered is kept. "
                f"{mend}"
            )
            raise UnavailableService(message)

    def _warnings(self, uids: list[str]) -> list[str]:
        """Return what the cluster warns of, and tell it once."""
        try:
            events = self._api.warnings(uids)
        except InvalidInput as error:  # a help for people; the pods themselves tell enough
            self._tell_once("events", str(error), warns=True)
            return []
        said = []
        for event in events:
            line = f"{event['involvedObject']['name']}: {event.get('reason')}: {event.get('message')}"
            said.append(line)
            self._tell_once(f"event {line}", line, warns=True)
        return said

    def _tell(self, pods: list[dict[str, Any]]) -> None:
        for pod in pods:
            failed = job_status.phase(pod) == "Failed"
            self._tell_once(pod["metadata"]["uid"], job_status.describe(pod), warns=failed)
        here = {pod["metadata"]["uid"] for pod in pods}
        for uid, said in list(self._told.items()):
            name, runs, _ = said.partition(" runs on ")
            if uid not in here and runs and name.startswith("pod "):
                self._tell_once(uid, f"{name} is gone: deleted, or lost with its node", warns=True)

    def _tell_once(self, key: str, line: str, *, warns: bool) -> None:
        if self._told.get(key) != line:
            self._told[key] = line
            (self._log.warning if warns else self._log.info)(line)

    def _wait(self, name: str, version: str) -> None:
        try:
            self._api.wait_for_change(name, version=version, seconds=LOOK_EVERY_S)
        except UnavailableService:
            time.sleep(1.0)
        except InvalidInput as error:  # it spares looks, no more
            self._tell_once("watch", str(error), warns=True)
            time.sleep(LOOK_EVERY_S)

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


def _fail(name: str, reason: str, pods: list[dict[str, Any]]) -> NoReturn:
    whys = "".join(f"; {why}" for why in [*job_status.failures(pods)][-3:])
    message = f"job {name} failed: {reason}{whys}; what it answered is kept, and the next run asks only what is missing"
    raise UnavailableService(message)
