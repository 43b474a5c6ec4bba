"""A Kubernetes API server with a Job controller, a scheduler that counts GPUs and a kubelet that starts real processes.

It holds what `batch/v1` Jobs promise and a one-node 1.20 cluster lacks: Indexed Jobs, a backoff limit per index, pod
failure policies and suspension. What a real cluster can do too is held by the same tests on both.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
import uuid
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qs, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY: Final = Path(__file__).parents[2]
NODE: Final = "gpu-node-0"
TICK_S: Final = 0.05
_SINCE_1_24: Final = ("completionMode", "backoffLimitPerIndex", "podFailurePolicy", "suspend")
_INDEX: Final = "batch.kubernetes.io/job-completion-index"


@dataclass
class Process:
    """A container: its process, and the lines it printed."""

    running: subprocess.Popen[bytes]
    lines: list[tuple[float, str]] = field(default_factory=list)
    reader: threading.Thread | None = None
    killed_at: float | None = None
    out_of_memory: bool = False


@dataclass
class KubernetesCluster:
    """The cluster's state, and what a test may do to it.

    Attributes:
        gpus: GPUs of its one node.
        is_old: Drop the fields that Kubernetes 1.20 does not know.
        is_down: Answer every request with 503.
        forbidden: (verb, resource) pairs that are refused.
        image_problem: Reason and message with which the kubelet holds every container back; empty for none.
        lost_output: Answer for every pod's output with 500, as where the node's kubelet is gone.
    """

    gpus: int = 4
    is_old: bool = False
    is_down: bool = False
    forbidden: set[tuple[str, str]] = field(default_factory=set)
    lost_output: bool = False
    image_problem: dict[str, str] = field(default_factory=dict)
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    pods: dict[str, dict[str, Any]] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    processes: dict[str, Process] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    version: int = 1
    changed: threading.Condition = field(default_factory=threading.Condition)
    _ends: threading.Event = field(default_factory=threading.Event)

    def evict(self, pod: str) -> None:
        """Take a pod away as a node under pressure does."""
        with self.changed:
            status = self.pods[pod]["status"]
            status["conditions"].append(
                {"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet", "message": "pressure"}
            )
            status |= {"reason": "Evicted", "message": "The node was low on resource: memory."}
            self._stop(pod, grace_s=0)

    def delete_pod(self, pod: str) -> None:
        """Delete a pod, as `kubectl delete pod` does."""
        with self.changed:
            self._delete_pod(self.pods[pod])

    def run_out_of_memory(self, pod: str) -> None:
        """Kill a pod's container as the kernel does when it takes more than its limit."""
        with self.changed:
            self.processes[pod].out_of_memory = True
            self._stop(pod, grace_s=0)

    def release(self, job: str) -> None:
        """Let a suspended Job begin, as Kueue does when the quota allows."""
        with self.changed:
            self.jobs[job]["spec"]["suspend"] = False

    # The Job controller, the scheduler and the kubelet: one turn of each.

    def turn(self) -> None:
        """Bring the state a step nearer to what the objects ask for."""
        with self.changed:
            if self._ends.is_set():
                return
            for pod in list(self.pods.values()):
                self._kubelet(pod)
            for job in list(self.jobs.values()):
                self._control(job)
            self.changed.notify_all()

    def _control(self, job: dict[str, Any]) -> None:
        spec, status, name = job["spec"], job["status"], job["metadata"]["name"]
        mine = [pod for pod in self.pods.values() if _owner(pod) == job["metadata"]["uid"]]
        if "completionTime" in status or _failed(job):
            ended = job.setdefault("_ended", time.monotonic())
            if time.monotonic() - ended > spec.get("ttlSecondsAfterFinished", 1e9):
                self.remove_job(name)
            return
        if spec.get("suspend"):
            return
        started = job.setdefault("_started", time.monotonic())
        done = {_index(pod) for pod in mine if pod["status"]["phase"] == "Succeeded"}
        if len(done) >= spec["completions"] or (done and not _is_indexed(spec) and len(done) >= 1):
            self._end_job(job, "Complete")
            return
        failed = [pod for pod in mine if pod["status"]["phase"] == "Failed" and not _is_ignored(spec, pod)]
        if any(_fails_job(spec, pod) for pod in failed):
            self._end_job(job, "Failed", "PodFailurePolicy", "Container worker failed with exit code 2")
        elif time.monotonic() - started > spec.get("activeDeadlineSeconds", 1e9):
            self._end_job(job, "Failed", "DeadlineExceeded", "Job was active longer than specified deadline")
        elif not _is_indexed(spec) and len(failed) > spec.get("backoffLimit", 6):
            self._end_job(job, "Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit")
        else:
            self._fill(job, mine, done, failed)

    def _fill(self, job: dict[str, Any], mine: list[Any], done: set[int], failed: list[Any]) -> None:
        """Give each index that lacks one a pod, unless it used up its restarts."""
        spec = job["spec"]
        active = {_index(pod) for pod in mine if pod["status"]["phase"] in {"Pending", "Running"}}
        given_up = set()
        for index in range(spec["completions"]):
            if index in done | active:
                continue
            falls = sum(_index(pod) == index for pod in failed)
            if _is_indexed(spec) and falls > spec.get("backoffLimitPerIndex", 6):
                given_up.add(index)
            elif len(active) < spec["parallelism"] and not job["metadata"].get("deletionTimestamp"):
                self._create_pod(job, index)
                active.add(index)
        if given_up and len(given_up | done) == spec["completions"]:
            self._end_job(job, "Failed", "FailedIndexes", "Job has failed indexes")

    def _end_job(self, job: dict[str, Any], kind: str, reason: str = "", message: str = "") -> None:
        job["status"].setdefault("conditions", []).append(
            {"type": kind, "status": "True", "reason": reason, "message": message}
        )
        if kind == "Complete":
            job["status"]["completionTime"] = _now()
        else:
            for pod in list(self.pods.values()):
                if _owner(pod) == job["metadata"]["uid"] and pod["status"]["phase"] in {"Pending", "Running"}:
                    self._delete_pod(pod)
        self._bump(job)

    def _create_pod(self, job: dict[str, Any], index: int) -> None:
        indexed = _is_indexed(job["spec"])
        name = f"{job['metadata']['name']}-{f'{index}-' if indexed else ''}{uuid.uuid4().hex[:5]}"
        labels = {"job-name": job["metadata"]["name"]}
        pod = {
            "metadata": {
                "name": name,
                "namespace": job["metadata"]["namespace"],
                "uid": uuid.uuid4().hex,
                "creationTimestamp": _now(),
                "labels": labels | job["spec"]["template"]["metadata"].get("labels", {}),
                "annotations": {_INDEX: str(index)} if indexed else {},
                "ownerReferences": [
                    {"kind": "Job", "apiVersion": "batch/v1", "name": labels["job-name"], "uid": job["metadata"]["uid"]}
                ],
            },
            "spec": json.loads(json.dumps(job["spec"]["template"]["spec"])),
            "status": {"phase": "Pending", "conditions": []},
        }
        self.pods[name] = pod
        self._bump(pod)

    def _kubelet(self, pod: dict[str, Any]) -> None:
        name, status = pod["metadata"]["name"], pod["status"]
        process = self.processes.get(name)
        if status["phase"] == "Pending" and not pod["metadata"].get("deletionTimestamp"):
            self._schedule(pod)
        elif process is not None and status["phase"] == "Running":
            if process.killed_at is not None and time.monotonic() > process.killed_at:
                _kill(process.running, signal.SIGKILL)
            code = process.running.poll()
            if code is not None and process.reader is not None and not process.reader.is_alive():
                self._ended(pod, process, code)
        if pod["metadata"].get("deletionTimestamp") and status["phase"] != "Running":
            self.pods.pop(name, None)
            self._bump(pod)

    def _schedule(self, pod: dict[str, Any]) -> None:
        busy = sum(_gpus(each) for each in self.pods.values() if each["status"]["phase"] == "Running")
        if busy + _gpus(pod) > self.gpus:
            message = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
            condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
            if pod["status"]["conditions"] != [condition]:
                pod["status"]["conditions"] = [condition]
                self._warn(pod, "FailedScheduling", message)
                self._bump(pod)
            return
        if self.image_problem:
            self._hold_back(pod)
            return
        container = pod["spec"]["containers"][0]
        environment = {each["name"]: each["value"] for each in container["env"]}
        index = pod["metadata"]["annotations"].get(_INDEX)
        running = subprocess.Popen(
            [*container["command"], *container["args"]],
            cwd=REPOSITORY,
            env={
                "PATH": os.environ["PATH"],
                "HOME": os.environ.get("HOME", "/"),
                **environment,
                **({"JOB_COMPLETION_INDEX": index} if index is not None else {}),
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        process = Process(running)
        process.reader = threading.Thread(target=_keep_lines, args=[process], daemon=True)
        process.reader.start()
        self.processes[pod["metadata"]["name"]] = process
        pod["spec"]["nodeName"] = NODE
        pod["status"] |= {
            "phase": "Running",
            "conditions": [{"type": "PodScheduled", "status": "True"}],
            "containerStatuses": [_container_status({"running": {"startedAt": _now()}})],
        }
        self._bump(pod)

    def _hold_back(self, pod: dict[str, Any]) -> None:
        statuses = [_container_status({"waiting": dict(self.image_problem)})]
        if pod["status"].get("containerStatuses") != statuses:
            pod["status"]["containerStatuses"] = statuses
            pod["status"]["conditions"] = [{"type": "PodScheduled", "status": "True"}]
            self._bump(pod)

    def _ended(self, pod: dict[str, Any], process: Process, code: int) -> None:
        status = code if code >= 0 else 128 - code
        reason = "OOMKilled" if process.out_of_memory else "Completed" if status == 0 else "Error"
        said = "\n".join(line for _, line in process.lines[-80:])[-2048:] if status else ""
        terminated = {"exitCode": status, "reason": reason, "message": said, "finishedAt": _now()}
        pod["status"] |= {
            "phase": "Succeeded" if status == 0 else "Failed",
            "containerStatuses": [_container_status({"terminated": terminated})],
        }
        self._bump(pod)

    def _delete_pod(self, pod: dict[str, Any]) -> None:
        pod["metadata"].setdefault("deletionTimestamp", _now())
        self._stop(pod["metadata"]["name"], grace_s=pod["spec"].get("terminationGracePeriodSeconds", 30))
        self._bump(pod)

    def _stop(self, pod: str, *, grace_s: float) -> None:
        process = self.processes.get(pod)
        if process is not None and process.running.poll() is None:
            _kill(process.running, signal.SIGTERM if grace_s else signal.SIGKILL)
            process.killed_at = time.monotonic() + grace_s

    def remove_job(self, name: str) -> None:
        """Delete a Job and its pods."""
        job = self.jobs.pop(name)
        for pod in list(self.pods.values()):
            if _owner(pod) == job["metadata"]["uid"]:
                self._delete_pod(pod)
        self._bump(job)

    def _warn(self, thing: dict[str, Any], reason: str, message: str) -> None:
        name = thing["metadata"]["name"]
        self.events.append(
            {
                "metadata": {"name": f"{name}.{uuid.uuid4().hex[:8]}", "creationTimestamp": _now()},
                "involvedObject": {"kind": "Pod", "name": name, "uid": thing["metadata"]["uid"]},
                "type": "Warning",
                "reason": reason,
                "message": message,
                "lastTimestamp": _now(),
            }
        )

    def _bump(self, thing: dict[str, Any]) -> None:
        self.version += 1
        thing["metadata"]["resourceVersion"] = str(self.version)

    def create_job(self, namespace: str, job: dict[str, Any]) -> dict[str, Any]:
        """Take a Job as the API server does: fields that it does not know are dropped without a word."""
        if self.is_old:
            job["spec"] = {name: value for name, value in job["spec"].items() if name not in _SINCE_1_24}
        job["metadata"] |= {"namespace": namespace, "uid": uuid.uuid4().hex, "creationTimestamp": _now()}
        job["status"] = {}
        self.jobs[job["metadata"]["name"]] = job
        self._bump(job)
        return job

    def stop(self) -> None:
        """End the controller and every process."""
        self._ends.set()
        with self.changed:  # no turn starts another one now
            processes = list(self.processes.values())
        for process in processes:
            _kill(process.running, signal.SIGKILL)
            process.running.wait()
            if process.reader is not None:
                process.reader.join(10)

    def keep_turning(self) -> None:
        """Run until stopped."""
        while not self._ends.wait(TICK_S):
            self.turn()


class _Handler(BaseHTTPRequestHandler):
    """The HTTP side of the cluster."""

    cluster: KubernetesCluster
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Keep quiet."""

    def do_GET(self) -> None:
        self._answer("get")

    def do_POST(self) -> None:
        self._answer("create")

    def do_DELETE(self) -> None:
        self._answer("delete")

    def _answer(self, verb: str) -> None:
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        words = url.path.strip("/").split("/")
        namespace = words[words.index("namespaces") + 1]
        rest = words[words.index("namespaces") + 2 :]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        watches = query.get("watch") in {"true", "True", "1"}
        resource = "/".join([rest[0], *rest[2:]])
        asked = "watch" if watches else "list" if verb == "get" and len(rest) == 1 else verb
        cluster = self.cluster
        cluster.asked.append((asked, resource))
        if cluster.is_down:
            self._send(503, {"message": "the server is currently unable to handle the request"})
        elif (asked, resource) in cluster.forbidden:
            self._send(403, {"message": f'{resource} is forbidden: User "anven" cannot {asked} resource "{resource}"'})
        elif watches:
            self._watch(query)
        elif resource == "pods/log":
            self._log(rest[1], query)
        else:
            with cluster.changed:
                self._send(*self._object(asked, namespace, rest, query, body))

    def _object(
        self, verb: str, namespace: str, rest: list[str], query: dict[str, str], body: bytes
    ) -> tuple[int, dict[str, Any]]:
        cluster = self.cluster
        if verb == "list":
            return 200, {"items": self._listed(rest[0], query), "metadata": {"resourceVersion": str(cluster.version)}}
        if verb == "create":
            job = json.loads(body)
            name = job["metadata"]["name"]
            if name in cluster.jobs:
                return 409, {"message": f'jobs.batch "{name}" already exists', "reason": "AlreadyExists"}
            return 201, _shown(cluster.create_job(namespace, job))
        name = rest[1]
        if name not in cluster.jobs:
            return 404, {"message": f'jobs.batch "{name}" not found'}
        return self._deleted(name, body) if verb == "delete" else (200, _shown(cluster.jobs[name]))

    def _deleted(self, name: str, body: bytes) -> tuple[int, dict[str, Any]]:
        wanted = json.loads(body or b"{}").get("preconditions", {}).get("uid")
        if wanted not in {None, self.cluster.jobs[name]["metadata"]["uid"]}:
            return 409, {"message": f"the UID in the precondition ({wanted}) does not match", "reason": "Conflict"}
        self.cluster.remove_job(name)
        return 200, {"kind": "Status", "status": "Success"}

    def _listed(self, resource: str, query: dict[str, str]) -> list[dict[str, Any]]:
        if resource == "events":
            return self.cluster.events
        return [_shown(pod) for pod in self.cluster.pods.values() if _selected(pod, query)]

    def _watch(self, query: dict[str, str]) -> None:
        """Send the first change after the version, or nothing until the time is over."""
        since, deadline = int(query.get("resourceVersion") or 0), time.monotonic() + float(query["timeoutSeconds"])
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        with self.cluster.changed:
            while time.monotonic() < deadline and not self.cluster.is_down:
                for pod in self.cluster.pods.values():
                    if int(pod["metadata"]["resourceVersion"]) > since and _selected(pod, query):
                        line = json.dumps({"type": "MODIFIED", "object": _shown(pod)}).encode() + b"\n"
                        self.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n0\r\n\r\n")
                        return
                self.cluster.changed.wait(0.2)
        self.wfile.write(b"0\r\n\r\n")

    def _log(self, pod: str, query: dict[str, str]) -> None:
        process = self.cluster.processes.get(pod)
        if self.cluster.lost_output:
            self._send(500, {"message": "Get https://node:10250/containerLogs: dial tcp: i/o timeout"})
        elif process is None or pod not in self.cluster.pods:
            self._send(404, {"message": f'pods "{pod}" not found'})
        else:
            self._send(200, _printed(process, query))

    def _send(self, status: int, content: dict[str, Any] | str) -> None:
        data = (content if isinstance(content, str) else json.dumps(content)).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if isinstance(content, str) else "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def kubernetes_cluster(folder: Path, **settings: Any) -> Iterator[tuple[KubernetesCluster, Path]]:
    """Run a cluster on loopback; yield it with the kubeconfig that reaches it."""
    cluster = KubernetesCluster(**settings)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"cluster": cluster}))
    server.daemon_threads = True
    threads = [threading.Thread(target=each, daemon=True) for each in (server.serve_forever, cluster.keep_turning)]
    for thread in threads:
        thread.start()
    config = folder / "kubeconfig.json"
    config.write_text(json.dumps(_kubeconfig(f"http://127.0.0.1:{server.server_address[1]}")))
    try:
        yield cluster, config
    finally:
        server.shutdown()
        server.server_close()
        cluster.stop()
        for thread in threads:
            thread.join(10)


def _printed(process: Process, query: dict[str, str]) -> str:
    after = time.time() - float(query["sinceSeconds"]) if "sinceSeconds" in query else 0.0
    return "".join(f"{_nanoseconds(at)} {text}\n" for at, text in list(process.lines) if at >= after)


def _kubeconfig(url: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "double",
        "clusters": [{"name": "double", "cluster": {"server": url}}],
        "users": [{"name": "anven", "user": {}}],
        "contexts": [{"name": "double", "context": {"cluster": "double", "user": "anven"}}],
    }


def _shown(thing: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in thing.items() if not name.startswith("_")}


def _selected(pod: dict[str, Any], query: dict[str, str]) -> bool:
    wanted = dict(each.split("=") for each in filter(None, query.get("labelSelector", "").split(",")))
    return bool(wanted.items() <= pod["metadata"]["labels"].items())


def _container_status(state: dict[str, Any]) -> dict[str, Any]:
    return {"name": "worker", "ready": False, "restartCount": 0, "image": "", "imageID": "", "state": state}


def _gpus(pod: dict[str, Any]) -> int:
    return int(pod["spec"]["containers"][0]["resources"]["limits"].get("nvidia.com/gpu", 0))


def _owner(pod: dict[str, Any]) -> str:
    return str(pod["metadata"]["ownerReferences"][0]["uid"])


def _index(pod: dict[str, Any]) -> int:
    return int(pod["metadata"]["annotations"].get(_INDEX, 0))


def _is_indexed(spec: dict[str, Any]) -> bool:
    return spec.get("completionMode") == "Indexed"


def _failed(job: dict[str, Any]) -> bool:
    return any(each["type"] == "Failed" for each in job["status"].get("conditions", []))


def _rules(spec: dict[str, Any], action: str) -> list[dict[str, Any]]:
    return [rule for rule in spec.get("podFailurePolicy", {}).get("rules", []) if rule["action"] == action]


def _is_ignored(spec: dict[str, Any], pod: dict[str, Any]) -> bool:
    wanted = {each["type"] for rule in _rules(spec, "Ignore") for each in rule.get("onPodConditions", [])}
    return any(each["type"] in wanted and each["status"] == "True" for each in pod["status"]["conditions"])


def _fails_job(spec: dict[str, Any], pod: dict[str, Any]) -> bool:
    codes = {code for rule in _rules(spec, "FailJob") for code in rule.get("onExitCodes", {}).get("values", [])}
    return any(
        each["state"].get("terminated", {}).get("exitCode") in codes for each in pod["status"]["containerStatuses"]
    )


def _keep_lines(process: Process) -> None:
    assert process.running.stdout is not None
    with process.running.stdout as output:
        for line in output:
            process.lines.append((time.time(), line.decode(errors="replace").rstrip("\n")))


def _kill(process: subprocess.Popen[bytes], number: int) -> None:
    if process.poll() is None:
        os.killpg(process.pid, number)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _nanoseconds(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f") + "000Z"
