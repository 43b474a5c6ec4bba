"""What a rollout takes from the verdict that it begins with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anven_pipelines.domain.errors import InvalidInput
from anven_pipelines.domain.prompt_report import served_versions
from anven_pipelines.domain.prompts import AdaptedPrompt

if TYPE_CHECKING:
    from anven_pipelines.domain.events import Event
    from anven_pipelines.resources.artifact_store import ArtifactStore


def signed_for(artifacts: ArtifactStore, workload: str, verdict: Event | None) -> dict[str, Any]:
    """Return the verdict's event and document by their hashes, and the version of the prompt that it was given for.

    `prompts` has by template what the prompt registry knows of it; see `served_versions`.

    Args:
        artifacts: Where the prompt is.
        workload: Whose verdict it is.
        verdict: The event; one of an older release may name neither document nor prompt.

    Raises:
        InvalidInput: it names a prompt that is not there.
        CorruptArtifact: the prompt cannot be read.
        UnavailableService: the artifact store does not answer.
    """
    if verdict is None:
        return {"verdict": None, "verdict_digest": None, "prompt": None, "prompts": {}}
    payload = verdict.payload
    prompt = None
    if digest := payload.get("adapted_prompt"):
        prompt = _prompt(artifacts, workload, digest)
        if prompt is None:
            message = (
                f"the rollout of {workload} cannot start: the prompt that its verdict was given for, adapted_prompt "
                f"{digest[:12]}, is not in the artifact store; restore it, or reach a new verdict with `anven migrate`"
            )
            raise InvalidInput(message)
    return {
        "verdict": verdict.hash,
        "verdict_digest": payload.get("verdict_digest"),
        "prompt": prompt and prompt.version,
        "prompts": served_versions(prompt) if prompt else {},
    }


def prompt_version(artifacts: ArtifactStore, workload: str, digest: str) -> str | None:
    """Return the version of the prompt that an `adapted_prompt` of this digest holds; None where it is not there.

    Raises:
        CorruptArtifact: it cannot be read.
        UnavailableService: the artifact store does not answer.
    """
    prompt = _prompt(artifacts, workload, digest)
    return None if prompt is None else prompt.version


def _prompt(artifacts: ArtifactStore, workload: str, digest: str) -> AdaptedPrompt | None:
    manifest = artifacts.load_manifest("adapted_prompt", workload, digest=digest)
    if manifest is None:
        return None
    return AdaptedPrompt.model_validate_json(artifacts.read(manifest)["json"].item())
