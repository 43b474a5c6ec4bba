"""Whom a request belongs to, and which arm it is dealt to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from anven_pipelines.domain.traffic import arm_of, bucket, unit_hash

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anven_pipelines.domain.gateway_event import Why
    from anven_pipelines.domain.traffic import Arm, Route

USER_HEADER: Final = "x-anven-user"
CONVERSATION_HEADER: Final = "x-anven-conversation"
NO_UNIT: Final = "no_unit"
"""Flag of a request that names nobody: it is dealt by its own id, and its user does not stay on one arm."""


class Unit(NamedTuple):
    """Who stays on one arm; `is_named` is false where a request names nobody."""

    name: str
    is_named: bool


@dataclass(frozen=True)
class Assignment:
    """Where a request goes and why.

    Attributes:
        route: The route in force when it came.
        unit: Keyed hash of the user or conversation.
        bucket: The unit's point in [0, 1).
        intended: Arm by the share alone.
        asked: Arm that is asked first.
        why: Why that is not the intended one.
        flags: Remarks for the event.
    """

    route: Route
    unit: str
    bucket: float
    intended: Arm
    asked: Arm
    why: Why | None
    flags: tuple[str, ...] = ()

    def facts(self) -> dict[str, Any]:
        """Return the fields that it has in every event of the request."""
        return {
            "workload": self.route.workload,
            "attempt": self.route.attempt,
            "generation": self.route.generation,
            "stage": self.route.stage,
            "share": self.route.share,
            "unit": self.unit,
            "bucket": self.bucket,
            "intended": self.intended,
            "why": self.why,
        }


def unit_of(data: Mapping[str, Any], headers: Mapping[str, str], *, kind: Literal["user", "conversation"]) -> Unit:
    """Find the user or conversation of a request.

    Args:
        data: The request's body.
        headers: Its headers, in lower case.
        kind: What is to stay on one arm.
    """
    metadata = data.get("metadata")
    conversation = metadata.get("conversation_id") if isinstance(metadata, dict) else None
    named: list[object] = [headers.get(USER_HEADER), data.get("user")]
    if kind == "conversation":
        named = [headers.get(CONVERSATION_HEADER), conversation, *named]
    for name in named:
        if isinstance(name, str) and name:
            return Unit(name, is_named=True)
    return Unit(str(data.get("litellm_call_id", "")), is_named=False)


def assign(key: bytes, route: Route, unit: Unit, *, breaker_open: bool) -> Assignment:
    """Deal a request to an arm.

    The intended arm is that of the share, whatever the kill switch or the breaker say: who is counted where must not
    depend on how the target fares.
    """
    point = bucket(key, workload=route.workload, attempt=route.attempt, unit=unit.name)
    intended = arm_of(point, replace(route, killed=False))
    why: Why | None = None
    if intended == "target" and route.killed:
        why = "killed"
    elif intended == "target" and breaker_open:
        why = "breaker"
    return Assignment(
        route=route,
        unit=unit_hash(key, workload=route.workload, unit=unit.name),
        bucket=point,
        intended=intended,
        asked="legacy" if why else intended,
        why=why,
        flags=() if unit.is_named else (NO_UNIT,),
    )
