"""MLflow's prompt registry: each prompt version once, its aliases, and the run that it came from.

A version is known by the tag `anven.version`, the digest of its content, so that registering it again finds it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from anven_pipelines.domain.prompt_template import SLOT
from anven_pipelines.domain.tracking import legal_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlflow import MlflowClient
    from mlflow.entities.model_registry import PromptVersion

    from anven_pipelines.domain.tracking import RegisteredPrompt

VERSION_TAG: Final = "anven.version"
LINKED_TAG: Final = "mlflow.linkedPrompts"  # as MlflowClient.link_prompt_version_to_run writes it, for any address
MOST_VERSIONS: Final = 1000


def register(client: MlflowClient, run_id: str, prompts: Sequence[RegisteredPrompt]) -> None:
    """Register prompts, point the aliases at them, and link them to a run; done twice it changes nothing."""
    linked = []
    for prompt in prompts:
        name = prompt_name(prompt.name)
        version = _version_of(client, name, prompt, run_id)
        for alias in prompt.aliases:
            client.set_prompt_alias(name, alias, int(version.version))
        for alias in prompt.first_aliases:
            if not _has_alias(client, name, alias):
                client.set_prompt_alias(name, alias, int(version.version))
        linked.append({"name": name, "version": str(version.version)})
    if linked:
        client.set_tag(run_id, LINKED_TAG, json.dumps(linked))


def prompt_name(name: str) -> str:
    """Return a name that the registry takes: letters, digits, `-`, `_` and `.`."""
    return legal_name(name).replace("/", ".").replace(":", ".").replace(" ", "-")


def template_of(messages: Sequence[dict[str, str]], slots: Sequence[str]) -> list[dict[str, Any]]:
    """Return messages with their slots as the registry writes variables: `{{name}}`."""

    def variable(found: Any) -> str:  # noqa: ANN401 - regex ships no types
        return f"{{{{{found[1]}}}}}" if found[1] in slots else str(found[0])

    return [{"role": each["role"], "content": SLOT.sub(variable, each["content"])} for each in messages]


def _version_of(client: MlflowClient, name: str, prompt: RegisteredPrompt, run_id: str) -> PromptVersion:
    """Find the version by its digest, or make it."""
    if client.get_prompt(name) is not None:
        versions: list[PromptVersion] = client.search_prompt_versions(name, max_results=MOST_VERSIONS)
        for version in versions:
            if version.tags.get(VERSION_TAG) == prompt.version:
                return version
    made: PromptVersion = client.register_prompt(
        name,
        template_of(prompt.messages, prompt.slots),
        commit_message=prompt.note,
        tags={**prompt.tags, VERSION_TAG: prompt.version, "anven.run": run_id},
    )
    return made


def _has_alias(client: MlflowClient, name: str, alias: str) -> bool:
    from mlflow.exceptions import MlflowException  # noqa: PLC0415 - mlflow is loaded by now

    try:
        return client.get_prompt_version_by_alias(name, alias) is not None
    except MlflowException:
        return False
