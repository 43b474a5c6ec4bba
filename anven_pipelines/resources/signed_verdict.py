"""What a rollout takes from the verdict that it begins with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anven_pipelines.domain.errors import InvalidInput
from anven_pipelines.domain.prompt_baseline import Baseline
from anven_pipelines.domain.prompt_report import served_versions
from anven_pipelines.domain.prompts import AdaptedPrompt

if TYPE_CHECKING:
    from anven_pipelines.domain.events import Event
    from anven_pipelines.domain.manifest import Manifest
    from anven_pipelines.resources.artifact_store import ArtifactStore


def signed_for(artifacts: ArtifactStore, workload: str, verdict: Event | None) -> dict[str, Any]:
    """Return the verdict's event and document by their hashes, and the version of the prompt that it was given for.

    `prompts` has by template what the prompt registry knows of it, see `served_versions`; null for one that stays as it
    was logged, which the legacy version is.

    Args:
        artifacts: Where the prompt is.
        workload: Whose verdict it is.
        verdict: The event; one of an older release may name neither document nor prompt.

    Raises:
        InvalidInput: it names a prompt that is not there.
        CorruptArtifact: the prompt, or the legacy prompts that it was made from, cannot be read.
        UnavailableService: the artifact store does not answer.
    """
    if verdict is None:
        return {"verdict": None, "verdict_digest": None, "prompt": None, "prompts": {}}
    payload = verdict.payload
    manifest = None
    if digest := payload.get("adapted_prompt"):
        manifest = artifacts.load_manifest("adapted_prompt", workload, digest=digest)
        if manifest is None:
            message = (
                f"the rollout of {workload} cannot start: the prompt that its verdict was given for, adapted_prompt "
                f"{digest[:12]}, is not in the artifact store; restore it, or reach a new verdict with `anven migrate`"
            )
            raise InvalidInput(message)
    prompt = None if manifest is None else _read(artifacts, manifest)
    return {
        "verdict": verdict.hash,
        "verdict_digest": payload.get("verdict_digest"),
        "prompt": prompt and prompt.version,
        "prompts": _versions(artifacts, workload, prompt, manifest) if prompt and manifest else {},
    }


def _versions(
    artifacts: ArtifactStore, workload: str, prompt: AdaptedPrompt, manifest: Manifest
) -> dict[str, str | None]:
    """Return the version of every template; none of declared rewrites, which the registry does not know."""
    found: dict[str, str | None] = {**served_versions(prompt)}
    digest = manifest.inputs.get("prompt_baseline")
    if prompt.strategy == "rewrite" or digest is None:
        return found
    baseline = artifacts.load_manifest("prompt_baseline", workload, digest=digest)
    if baseline is None:  # then what stays as logged has no name, and its alias stays where it was
        return found
    templates = Baseline.from_json(artifacts.read(baseline)["json"].item()).templates
    return {template.name: None for template in templates} | found


def prompt_version(artifacts: ArtifactStore, workload: str, digest: str) -> str | None:
    """Return the version of the prompt that an `adapted_prompt` of this digest holds; None where it is not there.

    Raises:
        CorruptArtifact: it cannot be read.
        UnavailableService: the artifact store does not answer.
    """
    manifest = artifacts.load_manifest("adapted_prompt", workload, digest=digest)
    return None if manifest is None else _read(artifacts, manifest).version


def _read(artifacts: ArtifactStore, manifest: Manifest) -> AdaptedPrompt:
    return AdaptedPrompt.model_validate_json(artifacts.read(manifest)["json"].item())
