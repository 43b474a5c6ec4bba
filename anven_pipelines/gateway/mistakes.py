"""Mistakes of ours: they are logged and counted, and fail no request."""

from __future__ import annotations

import logging

_log = logging.getLogger("anven.gateway")


class Mistakes:
    """How many one worker has made."""

    def __init__(self) -> None:
        """Start with none."""
        self.count = 0

    def note(self, what: str, *names: object, error: Exception | None = None) -> None:
        """Count a mistake and log it.

        Args:
            what: What came of it, with a place for each name.
            names: What it is about.
            error: Logged with its traceback; None where that may quote a text.
        """
        self.count += 1
        _log.error(what, *names, exc_info=error)
