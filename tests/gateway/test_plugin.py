"""LiteLLM's hooks, without a proxy that calls them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from anven_pipelines.gateway.client_side import EXCHANGE_HEADER
from anven_pipelines.gateway.plugin import AnvenGateway
from anven_pipelines.ingest.gateway_events import read_batch
from tests.gateway_service import asked, served

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from anven_pipelines.gateway.service import GatewayService


@pytest.fixture
def service(tmp_path: Path) -> Iterator[GatewayService]:
    with served(tmp_path, share=0.0, shadow=1.0) as service:
        yield service


def test_a_request_whose_dealing_fails_is_still_known_to_the_hooks_that_tell_of_its_answer(
    service: GatewayService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deal = service.deal

    def fails_late(*args: Any) -> None:
        deal(*args)
        raise RuntimeError

    monkeypatch.setattr(service, "deal", fails_late)
    plugin, exchange = AnvenGateway(service), service.begin(0.0)
    data = asked(proxy_server_request={"headers": {EXCHANGE_HEADER: exchange.id}})

    async def answer() -> None:
        await plugin.async_pre_call_hook(None, None, data, "acompletion")
        exchange.http_status = 200
        exchange.ended(1.0, is_complete=True, is_disconnected=False)
        await plugin.async_log_success_event({"litellm_params": {"metadata": data["metadata"]}}, None, None, None)

    asyncio.run(answer())
    assert service.mistakes.count == 1
    assert service.recorder.log.flush()
    [event] = read_batch(tmp_path / "events", {}).events.rows(named=True)
    assert (event["served"], event["status"], event["cached"]) == ("legacy", "ok", False)


@pytest.mark.parametrize("in_loop", [True, False], ids=["SIGTERM", "Ctrl-C"])
def test_a_mirrored_request_that_the_gateways_end_cuts_off_has_its_event(
    service: GatewayService, tmp_path: Path, *, in_loop: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugin, exchange = AnvenGateway(service), service.begin(0.0)

    async def hangs(_: object) -> None:
        await asyncio.Event().wait()

    async def mirror() -> None:
        service.deal(asked(), {}, exchange)
        plugin.shadows.mirror(exchange)
        await asyncio.sleep(0)
        if in_loop:
            plugin.close()

    monkeypatch.setattr(plugin.shadows, "_answer", hangs)
    asyncio.run(mirror())  # the loop's end cancels what has not ended
    plugin.close()
    [event] = read_batch(tmp_path / "events", {}).events.rows(named=True)
    assert (event["kind"], event["status"], event["error_class"]) == ("shadow", "error", "Stopped")
    assert event["request_id"] == "a"
