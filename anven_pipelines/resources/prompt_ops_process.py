"""The process of llama-prompt-ops: what starts it, and that nothing of it stays behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from anven_pipelines.domain.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

PYTHON: Final = "ANVEN_PROMPT_OPS_PYTHON"

_INSTALL: Final = "(python3 -m venv DIR, DIR/bin/pip install llama-prompt-ops==0.0.8) and export"
_LOOK: Final = "import importlib.util as u, sys; sys.exit(u.find_spec('llama_prompt_ops') is None)"
_LOOK_SECONDS: Final = 60.0  # 0.05 are usual; an interpreter on a slow network disk takes longer

_GRACE_SECONDS: Final = 5.0
_SHOWN_LINES: Final = 8


def command_of(environ: Mapping[str, str]) -> list[str]:
    """Return what starts llama-prompt-ops.

    Raises:
        InvalidInput: the environment names no Python, or one that is not there.
    """
    python = environ.get(PYTHON, "")
    if not python or shutil.which(python) is None:
        found = f"is {python!r}, which does not run" if python else "is not set"
        message = (
            f"the strategy prompt-ops needs the Python of an environment with llama-prompt-ops, and {PYTHON} {found}; "
            f"make one {_INSTALL} {PYTHON}=DIR/bin/python"
        )
        raise InvalidInput(message)
    return [python, "-I", "-m", "llama_prompt_ops.interfaces.cli"]


def require_installed(command: Sequence[str]) -> None:
    """Look for the program in its environment, without importing it: a search would find out when others have paid.

    Raises:
        InvalidInput: the environment lacks it, or what is named is no Python.
    """
    python = command[0]
    try:
        looked = subprocess.run(  # noqa: S603 - what the operator named
            [python, "-I", "-c", _LOOK],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_LOOK_SECONDS,
            check=False,
        )
        is_there, said = looked.returncode == 0, looked.stderr.decode(errors="replace").strip().splitlines()[-1:]
    except (OSError, subprocess.TimeoutExpired) as error:
        is_there, said = False, [str(error)]
    if not is_there:
        reason = f" ({said[0]})" if said else ""
        message = (
            f"{PYTHON} is {python!r}, whose environment has no llama-prompt-ops{reason}; make one that has {_INSTALL} "
            f"{PYTHON}=DIR/bin/python"
        )
        raise InvalidInput(message)


@contextmanager
def running(
    command: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    output: Any,  # noqa: ANN401 - an open file
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program in a session of its own, and leave none of its processes behind."""
    try:
        process = subprocess.Popen(  # noqa: S603 - what the operator named
            command,
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        message = f"llama-prompt-ops cannot be started ({error}); see what {PYTHON} names"
        raise InvalidInput(message) from error
    with process:
        try:
            yield process
        finally:
            _end(process)


def last_lines(log: Path) -> list[str]:
    """Return the end of what it said."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    return [line[-300:] for line in lines if line][-_SHOWN_LINES:]


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE_SECONDS)
