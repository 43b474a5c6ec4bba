from __future__ import annotations

import pytest

from anven_pipelines import gateway_run
from anven_pipelines.domain.errors import UnavailableService


def test_without_what_the_proxy_needs_it_says_which_extra_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program `litellm` comes without the extra too, and would end with an import error."""
    gateway_run.require_proxy()
    monkeypatch.setattr(gateway_run, "_PROXY_NEEDS", ("apscheduler", "no_such_module"))

    with pytest.raises(UnavailableService, match=r"\(no_such_module is missing\); install the extra `gateway`: `./uvw"):
        gateway_run.require_proxy()


def test_spans_that_cannot_be_sent_are_told_before_the_gateway_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}
    gateway_run.require_exporter(asked)
    monkeypatch.setattr(gateway_run, "_EXPORTER", "no_such_package.exporter")

    with pytest.raises(
        UnavailableService, match=r"\(no_such_package.exporter is missing\); install the extra `gateway`"
    ):
        gateway_run.require_exporter(asked)
    gateway_run.require_exporter({})
    gateway_run.require_exporter({**asked, "OTEL_TRACES_EXPORTER": "none"})
