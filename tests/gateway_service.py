"""One worker's service without a proxy round it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from anven_pipelines.domain.prompts import carry_over
from anven_pipelines.domain.traffic import Route, Traffic
from anven_pipelines.domain.traffic_file import print_traffic
from anven_pipelines.gateway.service import GatewayService
from anven_pipelines.gateway.settings import ArmSettings, GatewaySettings, WorkloadSettings
from anven_pipelines.spec import Contract
from anven_pipelines.spec_gateway import Gateway, Upstream

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from anven_pipelines.domain.prompts import AdaptedPrompt


@contextmanager
def served(
    folder: Path,
    *,
    share: float = 1.0,
    shadow: float = 0.0,
    prompt: AdaptedPrompt | None = None,
    events: Path | None = None,
) -> Iterator[GatewayService]:
    """Serve the workload `support`; `prompt` is the target's, `events` where the log is, in the folder where None."""
    traffic = folder / "traffic.json"
    route = Route("support", attempt=1, generation=1, stage=0, share=share, shadow=shadow)
    traffic.write_text(print_traffic(Traffic({"support": route})))
    upstream = Upstream(model="openai/model")
    workload = WorkloadSettings(
        legacy=ArmSettings(model="openai/model", prompt=carry_over()),
        target=ArmSettings(model="openai/model", prompt=prompt or carry_over()),
        gateway=Gateway(legacy=upstream, target=upstream),
        contract=Contract(),
    )
    settings = GatewaySettings(
        workloads={"support": workload}, traffic=str(traffic), events=str(events or folder / "events")
    )
    service = GatewayService(settings, key=b"a key that is long enough")
    try:
        yield service
    finally:
        service.close()


def asked(**changes: Any) -> dict[str, Any]:
    """Return a request as LiteLLM hands it to its hooks."""
    messages = [{"role": "user", "content": "hello"}]
    return {"model": "support", "messages": messages, "litellm_call_id": "a", "user": "ada", **changes}
