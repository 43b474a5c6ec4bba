"""What every command of `anven` has in common: one JSON object on stdout if wanted, one clear error, one exit code.

Exit codes: 0 it did its job, 1 the verdict or a check is negative, 2 bad input, 3 it could not be done, 130
interrupted.
"""

from __future__ import annotations

import json
import signal
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Final, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from sqlalchemy.exc import SQLAlchemyError

from anven_pipelines.domain.errors import AnvenError, CheckFailed, InvalidInput, UnavailableService

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NEGATIVE: Final = 1
BAD_INPUT: Final = 2
NOT_DONE: Final = 3
INTERRUPTED: Final = 130
_GOES_ON: Final = "what was durable is kept, the same command goes on from there"

stderr = Console(stderr=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout; everything else on stderr.")]


class Output:
    """What a command prints on stdout under --json: one object, whatever happens."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._has_told = False

    def tell(self, json_object: str) -> bool:
        """Print the object if it is wanted and is the first; return whether JSON is wanted at all."""
        if self._as_json and not self._has_told:
            typer.echo(json_object)
            self._has_told = True
        return self._as_json

    def tell_error(self, kind: str, message: str) -> None:
        """Print what went wrong."""
        self.tell(json.dumps({"error": {"kind": kind, "message": message}}))


@contextmanager
def reported(*, as_json: bool, interrupted: str = _GOES_ON) -> Iterator[Output]:
    """Turn the product's errors into one clear message and an exit code, and SIGTERM into what Ctrl-C does.

    Args:
        as_json: Print one JSON object.
        interrupted: What an interrupt means for what was done so far.
    """
    output = Output(as_json=as_json)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield output
    except AnvenError as error:
        negative = NEGATIVE if isinstance(error, CheckFailed) else NOT_DONE
        _fail(error, output, code=BAD_INPUT if isinstance(error, InvalidInput) else negative)
    except (OSError, SQLAlchemyError) as error:
        reason = str(error).splitlines()[0]
        message = f"{type(error).__name__}: {reason}; check that the disk has room and ANVEN_HOME can be written"
        _fail(UnavailableService(message), output, code=NOT_DONE)
    except KeyboardInterrupt:
        message = f"interrupted; {interrupted}"
        output.tell_error("Interrupted", message)
        stderr.print(message)
        sys.exit(INTERRUPTED)
    finally:
        signal.signal(signal.SIGTERM, before)


def _fail(error: AnvenError, output: Output, *, code: int) -> NoReturn:
    output.tell_error(type(error).__name__, str(error))
    stderr.print(f"[red]error[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
    sys.exit(code)


def home_folder() -> Path:
    """Return the folder of local state, made absolute for the processes that are started from here."""
    from anven_pipelines.resources.deployments import adopt_home  # noqa: PLC0415

    return adopt_home()
