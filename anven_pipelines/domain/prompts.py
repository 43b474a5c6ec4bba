"""How the legacy prompt is carried over to the target model.

An adapted prompt is data: a strategy by name and the transformation it applies. Its version is a digest of both, so
equal versions ask equal questions. A further strategy is one entry in `STRATEGIES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from anven_pipelines.domain.canonical import digest_of

Message = dict[str, Any]
Strategy = Callable[[Mapping[str, Any], Sequence[Message]], list[Message]]


def _unchanged(_: Mapping[str, Any], messages: Sequence[Message]) -> list[Message]:
    """Ask the target exactly what the legacy model was asked."""
    return list(messages)


STRATEGIES: Final[Mapping[str, Strategy]] = {"identity": _unchanged}


class AdaptedPrompt(BaseModel):
    """What turns the legacy messages into the target's; refuses a version that is not the digest of the rest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    strategy: str = Field(description="Name of the strategy, one of STRATEGIES.")
    transformation: dict[str, Any] = Field(description="What the strategy applies, plain JSON values.")
    description: str = Field(description="What was done, in words for the report; not part of the version.")
    version: str = Field(description="SHA-256, in hex, over strategy and transformation.")

    @field_validator("strategy")
    @classmethod
    def _strategy_is_known(cls, strategy: str) -> str:
        if strategy not in STRATEGIES:
            message = f"the prompt strategy {strategy!r} is unknown; one of {', '.join(STRATEGIES)} is needed"
            raise ValueError(message)
        return strategy

    @model_validator(mode="after")
    def _version_is_digest(self) -> AdaptedPrompt:
        if self.version != (digest := version_of(self.strategy, self.transformation)):
            message = (
                f"the prompt version is {self.version}, its content has {digest}; materialise adapted_prompt again"
            )
            raise ValueError(message)
        return self


def version_of(strategy: str, transformation: Mapping[str, Any]) -> str:
    """Return the version of a prompt: the digest of what decides the messages."""
    return digest_of({"strategy": strategy, "transformation": dict(transformation)})


def carry_over() -> AdaptedPrompt:
    """Return the identity: the legacy prompt, unchanged."""
    return AdaptedPrompt(
        strategy="identity",
        transformation={},
        description="The legacy prompt carried over unchanged; nothing was adapted to the target model.",
        version=version_of("identity", {}),
    )


def apply(prompt: AdaptedPrompt, messages: Sequence[Message]) -> list[Message]:
    """Return the messages that the target model is sent in place of the legacy ones, which stay as they are."""
    return STRATEGIES[prompt.strategy](prompt.transformation, messages)
