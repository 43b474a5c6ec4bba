"""A verdict that is GO, written as the asset `sign_off` writes it, for tests that begin where it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anven_pipelines.assets.materialization import publish_document
from anven_pipelines.domain.prompt_baseline import Baseline
from anven_pipelines.domain.prompts import declared_prompt
from anven_pipelines.domain.sign_off import SIGNED_OFF, sign_off_stream
from anven_pipelines.domain.signed_target import PROMPT, TARGET, declared_target

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from anven_pipelines.domain.prompt_template import PromptTemplate
    from anven_pipelines.domain.prompts import AdaptedPrompt
    from anven_pipelines.resources.artifact_store import ArtifactStore
    from anven_pipelines.resources.state_store import StateStore
    from anven_pipelines.spec import Migration


def sign_off(
    migration: Migration,
    state: StateStore,
    artifacts: ArtifactStore,
    *,
    now: datetime,
    prompt: AdaptedPrompt | None = None,
    templates: Sequence[PromptTemplate] = (),
) -> str:
    """Sign a migration off as it is declared, for a prompt or its file's own; return the prompt's version.

    The templates are those of the prompt's baseline; without any, it has none, as in tests that look at no template.
    """
    found, inputs = prompt or declared_prompt(migration.prompt), {}
    if templates:
        baseline = Baseline(templates=tuple(templates), calls={}, uncovered={}, proposed={})
        published = publish_document(artifacts, baseline.to_json(), inputs={})
        artifacts.save_manifest("prompt_baseline", migration.workload, published)
        inputs["prompt_baseline"] = published.digest
    manifest = publish_document(artifacts, found.model_dump_json(), inputs=inputs)
    artifacts.save_manifest("adapted_prompt", migration.workload, manifest)
    payload = {
        "verdict": "GO",
        "verdict_digest": "d" * 64,
        "adapted_prompt": manifest.digest,
        TARGET: declared_target(migration),
        PROMPT: found.version,
    }
    stream = sign_off_stream(migration.workload)
    state.append(stream=stream, kind=SIGNED_OFF, key=f"verdict-{len(state.events(stream))}", payload=payload, now=now)
    return found.version
