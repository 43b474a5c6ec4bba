"""Shows on a terminal, or in a log file, how far a run is."""

from __future__ import annotations

import math
import re
import time
from typing import TYPE_CHECKING, Final

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column

from anven_pipelines.chain import VERDICT_CHECK
from anven_pipelines.run_watch import DONE, STARTED

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from anven_pipelines.run_watch import Told

QUIET_S: Final = 30.0  # between two lines of a count in a log file
# A count begins its line, or follows the rate that it belongs to; `5 of 60 requests` in a result's reason is none.
_COUNT: Final = re.compile(r"(\S+ at \S+/s: )?(\d\S* (\S+ )?|all )of \d|[\d,]+ lines read")


class RunView:
    """Shows the steps' progress; warnings and what happens once scroll by above it and stay."""

    def __init__(
        self, console: Console, workload: str, *, steps: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Begin with nothing done.

        Args:
            console: Where it is shown.
            workload: Whose run it is.
            steps: How many there are.
            clock: Seconds; only differences count.
        """
        self._console = console
        self._clock = clock
        self._counted_at = -math.inf
        self._steps: set[str] = set()
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[now]}", markup=False, table_column=Column(ratio=1, no_wrap=True)),
            console=console,
            transient=True,
            expand=True,
        )
        self._task = self._progress.add_task(workload, total=steps, now="")

    def __enter__(self) -> None:
        """Begin to draw, where something can be drawn."""
        if self._console.is_terminal:
            self._progress.start()

    def __exit__(self, *_: object) -> None:
        """Take away what is drawn."""
        if self._console.is_terminal:
            self._progress.stop()

    def tell(self, told: Told) -> None:
        """Show one thing that happened."""
        if told.text == DONE:
            self._steps.add(told.step)
        if told.warning:
            self._warn(told)
        elif self._stays(told):
            self._print(f"{told.step}: {told.text}", markup=False)
        self._progress.update(
            self._task, completed=len(self._steps), now=f"{told.step}: {told.text}".partition("\n")[0]
        )

    def _warn(self, told: Told) -> None:
        if VERDICT_CHECK not in told.text:  # the verdict is shown whole when the chain has ended
            text = escape(f"{told.step}: {told.text}")
            self._print(f"[yellow]warning[/yellow] {text}")

    def _print(self, text: str, *, markup: bool = True) -> None:
        """Print a line; one that failed and is tried again stands there twice at most.

        Raises:
            OSError: it cannot be written now.
        """
        if not self._console.quiet:  # as rich makes it where nobody reads any more
            self._console.file.flush()  # a line that still waits there is not joined by another copy of it
        try:
            self._console.print(text, markup=markup, highlight=False, soft_wrap=True)
        except OSError:
            with self._console.capture():  # its end empties what rich would print again before its next line
                pass
            raise

    def _stays(self, told: Told) -> bool:
        """Whether it is written as a line: what is counted only now and then, and not where it is drawn."""
        is_drawn, now = self._console.is_terminal, self._clock()
        if told.text in {STARTED, DONE}:
            self._counted_at = -math.inf  # the next step's first count is told at once
            return told.text == DONE and not is_drawn
        if not _COUNT.match(told.text):
            return True
        if is_drawn or now - self._counted_at < QUIET_S:
            return False
        self._counted_at = now
        return True
