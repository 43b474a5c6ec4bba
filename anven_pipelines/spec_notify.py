"""Who is told of a rollout's changes: webhooks, Slack and what takes its messages, and e-mail."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field, model_validator

from anven_pipelines.spec_values import Section

Notified = Literal[
    "start",
    "advance",
    "hold",
    "roll_back",
    "complete",
    "pause",
    "resume",
    "abort",
    "override",
    "drill_failed",
    "flag",
    "unflag",
    "kill",
    "unkill",
    "shadow",
]

_VARIABLE: Final = r"^[A-Za-z_][A-Za-z0-9_]*$"
_ADDRESS: Final = r"^[^@\s,<>]+@[^@\s,<>]+$"


class _Receiver(Section):
    """What all receivers have."""

    only: list[Notified] | None = Field(default=None, min_length=1)
    """Which changes are told; all where absent."""


class Webhook(_Receiver):
    """Gets each notice as a JSON object, with its id in the body and in the header `Idempotency-Key`."""

    kind: Literal["webhook"]
    url_env: str = Field(pattern=_VARIABLE)
    """Name of the environment variable that holds the URL."""
    token_env: str | None = Field(default=None, pattern=_VARIABLE)
    """Name of the variable whose value is sent as a bearer token."""


class Slack(_Receiver):
    """Gets each notice as Slack's incoming webhooks take it, and others that copied them: `{"text": ...}`."""

    kind: Literal["slack"]
    url_env: str = Field(pattern=_VARIABLE)
    """Name of the environment variable that holds the webhook's URL, which is a secret."""


class Email(_Receiver):
    """Gets each notice by SMTP."""

    kind: Literal["email"]
    to: list[Annotated[str, Field(pattern=_ADDRESS)]] = Field(min_length=1, max_length=50)
    """Addresses."""
    sender: str = Field(pattern=_ADDRESS)
    """Address that it comes from."""
    server: str = Field(pattern=r"^[A-Za-z0-9.:-]+$")
    """Host of the SMTP server."""
    port: int = Field(default=587, ge=1, le=65535)
    """Port: 587 for STARTTLS, 465 for TLS from the first byte, as a rule."""
    security: Literal["starttls", "tls", "none"] = "starttls"
    """How the connection is encrypted; a server that cannot is refused."""
    user_env: str | None = Field(default=None, pattern=_VARIABLE)
    """Name of the environment variable that holds the user's name; no log-in where absent."""
    password_env: str | None = Field(default=None, pattern=_VARIABLE)
    """Name of the one that holds the password."""

    @model_validator(mode="after")
    def _logs_in_with_both(self) -> Email:
        if (self.user_env is None) != (self.password_env is None):
            message = "`user_env` and `password_env` go together"
            raise ValueError(message)
        if self.user_env is not None and self.security == "none":
            message = "a password is never sent unencrypted: `security` of starttls or tls is needed to log in"
            raise ValueError(message)
        return self


Receiver = Annotated[Webhook | Slack | Email, Field(discriminator="kind")]
