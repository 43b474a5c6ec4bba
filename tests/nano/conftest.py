"""Servers that several tests share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.nano_server import nano_server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.nano_server import NanoServer


@pytest.fixture(scope="session")
def server() -> Iterator[NanoServer]:
    """Serve anven-nano without faults."""
    with nano_server() as running:
        yield running
