"""What the gateway does with a request, LiteLLM apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from anven_pipelines.domain.prompts import AdaptedPrompt, carry_over, version_of
from anven_pipelines.domain.traffic import Route, Traffic, print_traffic
from anven_pipelines.gateway.exchange import Usage
from anven_pipelines.gateway.service import GatewayService
from anven_pipelines.gateway.settings import ArmSettings, GatewaySettings, WorkloadSettings
from anven_pipelines.ingest.gateway_events import read_batch
from anven_pipelines.spec import Contract
from anven_pipelines.spec_gateway import Gateway, Upstream

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ROUTE = Route("support", attempt=1, generation=1, stage=0, share=1.0)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[GatewayService]:
    """A worker whose target has a prompt that cannot be applied, as one of a later version may be."""
    traffic = tmp_path / "traffic.json"
    traffic.write_text(print_traffic(Traffic({"support": ROUTE})))
    transformation: dict[str, Any] = {"profile": None, "templates": [{}]}
    broken = AdaptedPrompt(
        strategy="templates",
        transformation=transformation,
        description="broken",
        version=version_of("templates", transformation),
    )
    upstream = Upstream(model="openai/model")
    workload = WorkloadSettings(
        legacy=ArmSettings(model="openai/model", prompt=carry_over()),
        target=ArmSettings(model="openai/model", prompt=broken),
        gateway=Gateway(legacy=upstream, target=upstream),
        contract=Contract(),
    )
    settings = GatewaySettings(workloads={"support": workload}, traffic=str(traffic), events=str(tmp_path / "events"))
    service = GatewayService(settings, key=b"a key that is long enough")
    yield service
    service.close()


def test_a_mistake_while_a_prompt_is_adapted_is_no_success_of_the_targets(
    service: GatewayService, tmp_path: Path
) -> None:
    messages = [{"role": "user", "content": "hello"}]
    data: dict[str, Any] = {"model": "support", "messages": messages, "litellm_call_id": "a", "user": "ada"}
    exchange = service.begin(0.0)
    service.deal(data, {}, exchange)
    assert (data["model"], data["messages"]) == ("support--legacy", messages)
    exchange.http_status = 200
    exchange.ended(1.0, is_complete=True, is_disconnected=False)
    service.told(exchange, Usage())
    assert service.log.flush()
    [event] = read_batch(tmp_path / "events", {}).events.rows(named=True)
    assert (event["intended"], event["served"], event["status"], event["why"], event["error_class"]) == (
        "target",
        "legacy",
        "ok",
        "fallback",
        "NotDealt",
    )
    assert service.internal_errors == 1
