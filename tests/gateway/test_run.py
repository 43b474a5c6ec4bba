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
