"""Reads how long this machine has been up."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from anven_pipelines.domain.uptime import Uptime

_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


def uptime() -> Uptime | None:
    """Return the present moment since this machine was started; None on a system that does not tell."""
    try:
        boot = _BOOT_ID.read_text().strip()
        return Uptime(boot, time.clock_gettime(time.CLOCK_BOOTTIME))
    except (OSError, AttributeError):  # only Linux has both
        return None
