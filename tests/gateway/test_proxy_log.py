"""What the proxy's log holds, and how much of it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from anven_pipelines.gateway.proxy_log import keep_text_out, turn

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SECRET = "the secret of ada"


class RefusedError(Exception):
    status_code = 400


def refuse() -> None:
    raise RefusedError(SECRET)


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = logging.getLogRecordFactory()
    # What tests before did to this logger: MLflow's migrations, for one, disable every logger that there is.
    for name, value in (("disabled", False), ("propagate", True), ("level", logging.NOTSET)):
        monkeypatch.setattr(logging.getLogger("LiteLLM Proxy"), name, value)
    keep_text_out()
    yield
    logging.setLogRecordFactory(before)


@pytest.mark.usefixtures("quiet")
def test_of_litellms_records_the_class_the_status_and_the_place_are_kept(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("LiteLLM Proxy")
    try:
        refuse()
    except RefusedError as error:
        log.exception("failed: %s 100 %%", error)  # noqa: TRY401 - as LiteLLM does
        log.error(f"failed: {error}")  # noqa: G004, TRY400 - as it also does
    log.error("failed: %s", RefusedError(SECRET))
    assert SECRET not in caplog.text
    assert caplog.text.count("RefusedError 400 at") == 2
    assert "test_proxy_log.py:" in caplog.text


@pytest.mark.usefixtures("quiet")
def test_our_own_lines_stay_and_lose_the_errors_text_alone(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("anven.gateway")
    log.error("the share is %s", "5 %")
    try:
        refuse()
    except RefusedError:
        log.exception("a request for %s was not dealt", "support")
    logging.getLogger("uvicorn.error").warning("it %s", "starts")
    assert SECRET not in caplog.text
    for said in ("the share is 5 %", "a request for support was not dealt; RefusedError 400 at", "it starts"):
        assert said in caplog.text


def test_a_log_that_is_too_large_goes_on_empty_under_its_writer(tmp_path: Path) -> None:
    path = tmp_path / "proxy.log"
    with path.open("ab", buffering=0) as writer:
        writer.write(b"x" * 100)
        turn(path, most_bytes=100)
        assert path.stat().st_size == 100
        writer.write(b"y")
        turn(path, most_bytes=100)
        writer.write(b"z")
    assert path.read_bytes() == b"z"
    assert path.with_name("proxy.log.1").read_bytes() == b"x" * 100 + b"y"
