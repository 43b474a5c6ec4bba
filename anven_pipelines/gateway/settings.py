"""What a gateway worker is told: a JSON file that `gateway.config` writes from the migration files."""

from __future__ import annotations

import hashlib
import hmac
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from anven_pipelines.domain.breaker import BreakerLimits
from anven_pipelines.domain.errors import InvalidInput
from anven_pipelines.domain.prompts import AdaptedPrompt
from anven_pipelines.domain.traffic import LEAST_KEY_BYTES
from anven_pipelines.spec import Contract
from anven_pipelines.spec_gateway import Gateway
from anven_pipelines.spec_values import Price

if TYPE_CHECKING:
    from collections.abc import Mapping

SETTINGS_ENV: Final = "ANVEN_GATEWAY_SETTINGS"
KEY_ENV: Final = "ANVEN_GATEWAY_KEY"
ASSIGNMENT_KEY_ENV: Final = "ANVEN_ASSIGNMENT_KEY"
UNTIL_STDIN_CLOSES_ENV: Final = "ANVEN_GATEWAY_UNTIL_STDIN_CLOSES"

LOG_ENV: Final = "ANVEN_GATEWAY_LOG"
"""Names the file that the proxy's output is appended to, where it is one."""

_OTLP: Final = "OTEL_EXPORTER_OTLP_"
_HTTP: Final = "http/protobuf"


class ArmSettings(BaseModel):
    """How one arm is asked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    prompt: AdaptedPrompt
    params: dict[str, object] = Field(default_factory=dict)
    price: Price | None = None
    url: str | None = None
    """Where it is reached; the provider's own where absent."""


class WorkloadSettings(BaseModel):
    """One workload that the gateway serves."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    legacy: ArmSettings
    target: ArmSettings
    gateway: Gateway
    contract: Contract
    score_wait: timedelta = timedelta(0)
    """How long a unit's score has, from its first request on."""
    judged: float = 1.0
    """Share of the units that are due for a score."""

    @property
    def limits(self) -> BreakerLimits:
        """When its breaker trips."""
        breaker = self.gateway.breaker
        return BreakerLimits(
            error_burst=breaker.error_burst,
            slow_factor=breaker.slow_factor,
            slow_margin_ms=breaker.slow_margin_ms,
            slow_at_ms=breaker.slow_at_ms,
        )


class GatewaySettings(BaseModel):
    """A gateway's settings, the same for all its workers; keys never stand in them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    workloads: dict[str, WorkloadSettings]
    traffic: str = Field(description="Path of the traffic file.")
    events: str = Field(description="Folder of the event log.")
    events_bytes: int = Field(default=2**30, ge=2**20, description="Largest size of the event log.")
    texts_bytes: int = Field(default=2**30, ge=2**20, description="Largest size of the text log; the oldest texts go.")


def read_settings(environ: Mapping[str, str]) -> GatewaySettings:
    """Read the file that the environment names.

    Raises:
        InvalidInput: it is not named, not readable, or not what `anven gateway` writes.
    """
    path = environ.get(SETTINGS_ENV)
    if not path:
        message = f"{SETTINGS_ENV} is not set; it names the settings file of the gateway: start it with `anven gateway`"
        raise InvalidInput(message)
    try:
        return GatewaySettings.model_validate_json(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValidationError) as error:
        message = f"{path} ({SETTINGS_ENV}) cannot be used: {error}; start the gateway with `anven gateway`"
        raise InvalidInput(message) from error


def sends_spans(environ: Mapping[str, str]) -> bool:
    """Return whether spans are sent, by OpenTelemetry's own variables: where an endpoint is named and nothing is off.

    Raises:
        InvalidInput: they ask for a protocol that is not spoken here.
    """
    is_off = environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    is_off = is_off or environ.get("OTEL_TRACES_EXPORTER", "otlp").strip() == "none"
    if is_off or not (environ.get(f"{_OTLP}TRACES_ENDPOINT") or environ.get(f"{_OTLP}ENDPOINT")):
        return False
    own = f"{_OTLP}TRACES_PROTOCOL"
    name = own if environ.get(own) else f"{_OTLP}PROTOCOL"
    if (protocol := environ.get(name) or _HTTP) != _HTTP:
        message = (
            f"{name} is {protocol}, but the gateway sends spans by {_HTTP} alone; set {own}={_HTTP} and "
            f"{_OTLP}TRACES_ENDPOINT to where that is taken (a collector's port 4318, path /v1/traces), or "
            "OTEL_TRACES_EXPORTER=none to send none"
        )
        raise InvalidInput(message)
    return True


def assignment_key(environ: Mapping[str, str]) -> bytes:
    """Return the secret that deals units to arms: its own variable, else derived from the gateway's key.

    A new key deals everybody anew, so a rollout that is under way needs one that stays.

    Raises:
        InvalidInput: neither is set, or the key is too short.
    """
    own = environ.get(ASSIGNMENT_KEY_ENV)
    if own:
        if len(own.encode()) < LEAST_KEY_BYTES:
            message = f"{ASSIGNMENT_KEY_ENV} is shorter than {LEAST_KEY_BYTES} bytes; use a random one"
            raise InvalidInput(message)
        return own.encode()
    shared = environ.get(KEY_ENV)
    if not shared:
        message = f"neither {ASSIGNMENT_KEY_ENV} nor {KEY_ENV} is set; a secret is needed to deal users to arms"
        raise InvalidInput(message)
    return hmac.digest(shared.encode(), b"anven assignment", hashlib.sha256)
