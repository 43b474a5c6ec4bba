"""MLflow's prompt registry: each prompt version once, its aliases, and the run that it came from.

A version is known by the tag `anven.version`, the digest of its content, so that registering it again finds it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError

from anven_pipelines.domain.prompt_changes import VARIES
from anven_pipelines.domain.prompt_template import SLOT
from anven_pipelines.domain.tracking import legal_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mlflow import MlflowClient
    from mlflow.entities.model_registry import PromptVersion

    from anven_pipelines.domain.tracking import RegisteredPrompt

VERSION_TAG: Final = "anven.version"
LINKED_TAG: Final = "mlflow.linkedPrompts"  # as MlflowClient.link_prompt_version_to_run writes it, for any address
MOST_VERSIONS: Final = 1000
LEGACY: Final = "legacy"
NOT_THERE: Final = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")  # a prompt, and an alias of one
LONGEST_TAG: Final = 100_000  # MLflow refuses a version with a longer one


def register(client: MlflowClient, run_id: str, prompts: Sequence[RegisteredPrompt]) -> None:
    """Register prompts, point the aliases at them, and link them to a run; done twice it changes nothing."""
    linked = []
    for prompt in prompts:
        name = prompt_name(prompt.name)
        version = _version_of(client, name, prompt, run_id)
        # Those that follow go first: told again after a break, they would no longer know what they followed.
        before = {_number(client, name, alias) for alias in prompt.aliases} | {None}
        for alias in prompt.first_aliases:
            if _number(client, name, alias) in before:
                client.set_prompt_alias(name, alias, int(version.version))
        for alias in prompt.aliases:
            client.set_prompt_alias(name, alias, int(version.version))
        linked.append({"name": name, "version": str(version.version)})
    if linked:
        client.set_tag(run_id, LINKED_TAG, json.dumps(linked))


def point(client: MlflowClient, alias: str, versions: Mapping[str, str | None]) -> dict[str, str | None]:
    """Point an alias of prompts at versions; done twice it changes nothing.

    Args:
        client: MLflow.
        alias: Such as `production`.
        versions: Name of a prompt to the digest of a version; None for the one that has the alias `legacy`.

    Returns:
        Name to the number of the version; None where the registry does not have it, and the alias stays where it was.
    """
    placed: dict[str, str | None] = {}
    for full, digest in versions.items():
        name = prompt_name(full)
        found = _by_alias(client, name, LEGACY) if digest is None else _find(client, name, digest)
        if found is not None:
            client.set_prompt_alias(name, alias, int(found.version))
        placed[name] = None if found is None else str(found.version)
    return placed


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
    if (found := _find(client, name, prompt.version)) is not None:
        return found
    made: PromptVersion = client.register_prompt(
        name,
        template_of(prompt.messages, prompt.slots),
        commit_message=prompt.note,
        tags={**prompt.tags, **_content(prompt), VERSION_TAG: prompt.version, "anven.run": run_id},
        response_format=prompt.contract,
        model_config=_model_config(prompt.params),
    )
    return made


def _content(prompt: RegisteredPrompt) -> dict[str, str]:
    """Return what the registry has no field for, as JSON that a person can read; what there is none of is left out."""
    found = {"tools": prompt.tools, "policies": prompt.policies, "params": prompt.params}
    texts = {f"anven.{name}": json.dumps(value, ensure_ascii=False, indent=1) for name, value in found.items() if value}
    return {
        name: text if len(text) <= LONGEST_TAG else f"{text[: LONGEST_TAG - 50]}... [cut: {len(text)} characters]"
        for name, text in texts.items()
    }


def _model_config(params: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the parameters as the registry's own field takes them; None where there are none, or it refuses them.

    It drops nulls and knows no value that differs by call; the tag `anven.params` has all as they are.
    """
    from mlflow.entities.model_registry import PromptModelConfig  # noqa: PLC0415 - mlflow is loaded by now

    known = {name: value for name, value in params.items() if value not in (None, VARIES)}
    try:
        PromptModelConfig.from_dict(known)
    except ValidationError:
        return None
    return known or None


def _find(client: MlflowClient, name: str, digest: str) -> PromptVersion | None:
    """Return the version of that digest; None where there is none."""
    if client.get_prompt(name) is None:
        return None
    versions: list[PromptVersion] = client.search_prompt_versions(name, max_results=MOST_VERSIONS)
    return next((version for version in versions if version.tags.get(VERSION_TAG) == digest), None)


def _number(client: MlflowClient, name: str, alias: str) -> int | None:
    found = _by_alias(client, name, alias)
    return None if found is None else int(found.version)


def _by_alias(client: MlflowClient, name: str, alias: str) -> PromptVersion | None:
    """Return the version that has an alias; None where none has."""
    from mlflow.exceptions import MlflowException  # noqa: PLC0415 - mlflow is loaded by now

    try:
        found: PromptVersion | None = client.get_prompt_version_by_alias(name, alias)
    except MlflowException as error:
        if error.error_code in NOT_THERE:
            return None
        raise
    return found
