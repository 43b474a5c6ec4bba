"""Deals a chat request to an arm: model, messages, parameters and cache namespace are rewritten in place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

from anven_pipelines.domain.errors import InvalidInput
from anven_pipelines.domain.prompts import apply
from anven_pipelines.domain.traffic import is_mirrored
from anven_pipelines.gateway.assignment import Assignment, assign, unit_of
from anven_pipelines.gateway.shadow_request import shadow_request, shaping

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anven_pipelines.domain.prompts import Call
    from anven_pipelines.domain.traffic import Arm
    from anven_pipelines.gateway.breakers import Breakers
    from anven_pipelines.gateway.exchange import Exchange
    from anven_pipelines.gateway.mistakes import Mistakes
    from anven_pipelines.gateway.settings import ArmSettings, WorkloadSettings
    from anven_pipelines.gateway.traffic_source import TrafficSource

Asked = Literal["legacy", "target", "shadow"]
"""Whom a model group of the proxy reaches: an arm, or the target for a mirrored request."""

PROMPT_UNFIT: Final = "PromptUnfit"
"""Error class of a request whose messages no rewrite of the target's prompt fits; legacy serves it."""

NOT_DEALT: Final = "NotDealt"
"""Error class of a request that a mistake of ours kept from the target; legacy serves it."""


class Dealer:
    """Deals by the routes in force, and past an open breaker."""

    def __init__(
        self,
        key: bytes,
        *,
        workloads: Mapping[str, WorkloadSettings],
        traffic: TrafficSource,
        breakers: Breakers,
        mistakes: Mistakes,
    ) -> None:
        """Deal from now on.

        Args:
            key: Secret that deals units to arms.
            workloads: What may be asked for.
            traffic: The routes in force.
            breakers: Whether the target may be asked.
            mistakes: Gets those of ours; legacy answers all the same.
        """
        self._key = key
        self._workloads = workloads
        self._traffic = traffic
        self._breakers = breakers
        self._mistakes = mistakes

    def deal(self, data: dict[str, Any], headers: Mapping[str, str], exchange: Exchange) -> None:
        """Deal a chat request to an arm: rewrite model, messages, parameters and cache namespace in place.

        Args:
            data: LiteLLM's request; `model` is the workload's name.
            headers: The client's headers, in lower case.
            exchange: Gets the assignment.
        """
        workload = self._workloads[data["model"]]
        route = self._traffic.traffic.of(data["model"])
        unit = unit_of(data, headers, kind=workload.gateway.unit)
        assignment = assign(self._key, route, unit, breaker_open=self._breakers.is_open(route))
        exchange.request_id = data.get("litellm_call_id")
        exchange.traceparent = headers.get("traceparent")
        exchange.stream = bool(data.get("stream"))
        exchange.prompt_versions = {
            "legacy": workload.legacy.prompt.version,
            "target": workload.target.prompt.version,
        }
        if workload.gateway.store_text:
            exchange.messages = list(data.get("messages") or [])  # the list itself is LiteLLM's to change
        exchange.assignment = assignment
        if assignment.asked == "target" and (unfit := self._ask_target(data, workload, assignment)):
            exchange.is_unfit, exchange.is_counted, exchange.error_class = True, True, unfit
        elif assignment.asked == "legacy":
            self._mirror(data, workload, exchange)
        if data["model"] == route.workload:
            data.update(model=group(route.workload, "legacy"))
            data["cache"] = _cache(data, workload.legacy, assignment, "legacy")

    def _ask_target(self, data: dict[str, Any], workload: WorkloadSettings, assignment: Assignment) -> str | None:
        """Rewrite a request for the target and say how legacy is asked should it fail; return why it stays legacy's."""
        name = assignment.route.workload
        original = data.get("messages") or []
        try:
            call = _call_of_target(data, workload.target)
        except InvalidInput:
            return PROMPT_UNFIT
        except Exception as error:  # noqa: BLE001 - legacy's answer to a mistake of ours is not the target's success
            self._mistakes.note("the prompt of a request for %s was not adapted; legacy answers it", name, error=error)
            return NOT_DEALT
        back = {changed: data.get(changed) for changed in call.params}
        cache = _cache(data, workload.legacy, assignment, "legacy")
        data["fallbacks"] = [{**back, "model": group(name, "legacy"), "messages": original, "cache": cache}]
        data["cache"] = _cache(data, workload.target, assignment, "target")
        data.update(call.params, model=group(name, "target"), messages=call.messages)
        for taken in [changed for changed, value in call.params.items() if value is None]:
            del data[taken]
        return None

    def _mirror(self, data: dict[str, Any], workload: WorkloadSettings, exchange: Exchange) -> None:
        assignment = exchange.assignment
        if assignment is None or assignment.why or self._breakers.reason(assignment.route.workload):
            return
        if not is_mirrored(self._key, assignment.route, request_id=exchange.request_id or exchange.id):
            return
        exchange.is_mirrored = True
        try:
            call = _call_of_target(data, workload.target)
            exchange.shadow = shadow_request(data, call)
        except InvalidInput:
            exchange.unmirrored = PROMPT_UNFIT
        except Exception as error:  # noqa: BLE001 - legacy is asked all the same, and as itself
            exchange.unmirrored = NOT_DEALT
            self._mistakes.note("a request for %s was not mirrored", assignment.route.workload, error=error)


def _call_of_target(data: Mapping[str, Any], target: ArmSettings) -> Call:
    """Return the messages for the target, and the parameters that it is asked with in place of the client's.

    The prompt sees the client's parameters, as it did when it was proven: they say which template a request is of, and
    some are put in the target's form. The target's own come before both; null takes a parameter away.

    Raises:
        InvalidInput: no rewrite of the prompt fits.
    """
    asked = shaping(data)
    call = apply(target.prompt, data.get("messages") or [], asked)
    kept = {name: value for name, value in call.params.items() if name not in asked or asked[name] != value}
    return call._replace(params={**dict.fromkeys(asked.keys() - call.params.keys()), **kept, **target.params})


def group(workload: str, asked: Asked) -> str:
    """Return the proxy's model group of an arm, or of the target as mirrored requests ask it."""
    return f"{workload}--{asked}"


def _cache(data: Mapping[str, Any], arm: ArmSettings, assignment: Assignment, name: Arm) -> dict[str, Any]:
    """Return the cache controls of an arm: answers of two arms, models, prompts or generations never meet."""
    route = assignment.route
    namespace = f"{route.workload}:{name}:{arm.model}:{arm.prompt.version[:16]}:{route.attempt}.{route.generation}"
    asked = data.get("cache")
    return {**(asked if isinstance(asked, dict) else {}), "namespace": namespace}
