"""`python -m anven_pipelines.worker`: answers a job's requests, alone or as one index of a Kubernetes Indexed Job.

Exits 0 when every request of its shards has an answer or a failure, 2 where the job cannot be done as it stands, and
3 where another attempt may do it. On SIGTERM and SIGINT it takes no new request, gives those in flight `--drain-s`
seconds, and ends by that signal; the next worker asks what is left.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from anven_pipelines.domain.errors import AnvenError, CorruptArtifact, InvalidInput, MissingInput
from anven_pipelines.resources.durable_folder import DurableFolder
from anven_pipelines.worker.generate import Watch, generate, read_job, summary
from anven_pipelines.worker.weight_sources import ModelCaches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from anven_pipelines.resources.answer_batch import Progress
    from anven_pipelines.worker.job import Shard

BAD_INPUT: Final = 2
COULD_NOT: Final = 3
TOLD_EVERY_S: Final = 5.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the worker and return its exit status."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    if os.getpid() == 1:  # in a container the kernel keeps a signal's default action from the first process
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda received, _: sys.exit(128 + received))
    if options.until_stdin_closes:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    with _telling() as (say, tell):
        try:
            folder = DurableFolder(options.store, json.loads(options.storage_options))
            job = read_job(folder, options.job)
            mine = _share(job.shards, index=options.index, of=options.indexes)
            progress = _Told(say)
            say(f"{sum(shard.rows for shard in mine):,} requests in {len(mine)} of {len(job.shards)} shards")
            watch = Watch(report=progress, say=say, drain_s=options.drain_s)
            answers = generate(folder, job, mine, watch, caches=ModelCaches.of(os.environ))
            tell(summary(answers, progress.last))
        except AnvenError as error:
            say(f"worker: {error}")
            return BAD_INPUT if isinstance(error, (InvalidInput, CorruptArtifact, MissingInput)) else COULD_NOT
    return 0


class _Told:
    """Passes progress on every few seconds, and remembers the last."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._told_at = -TOLD_EVERY_S
        self.last: Progress | None = None

    def __call__(self, progress: Progress) -> None:
        self.last = progress
        if progress.elapsed_s - self._told_at >= TOLD_EVERY_S or progress.done == progress.total:
            self._told_at = progress.elapsed_s
            self._say(str(progress))


@contextmanager
def _telling() -> Iterator[tuple[Callable[[str], None], Callable[[dict[str, object]], None]]]:
    """Yield how to say a line and how to tell the figures: to Dagster where it started us, else on our own streams."""
    from dagster_pipes import DAGSTER_PIPES_CONTEXT_ENV_VAR, open_dagster_pipes  # noqa: PLC0415 - only where it started us

    if DAGSTER_PIPES_CONTEXT_ENV_VAR in os.environ:
        with open_dagster_pipes() as pipes:

            def say(line: str) -> None:
                pipes.log.info(line)
                _print(line)

            yield say, pipes.report_custom_message
        return
    yield _print, lambda figures: print(json.dumps(figures), flush=True)  # noqa: T201 - a program's result


def _print(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201 - a program's progress


def _share(shards: Sequence[Shard], *, index: int, of: int) -> list[Shard]:
    """Return the shards of one index: contiguous, as neighbours share beginnings of prompts.

    Raises:
        InvalidInput: there is no such index.
    """
    if not 0 <= index < of:
        message = f"index {index} of {of} does not exist; indexes run from 0 to {of - 1}"
        raise InvalidInput(message)
    return list(shards[len(shards) * index // of : len(shards) * (index + 1) // of])


def _end_with_stdin() -> None:
    """Stop as on SIGTERM when whoever started us is gone, however it ended."""
    while os.read(0, 1 << 16):  # not sys.stdin, whose lock would be held when the interpreter ends
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m anven_pipelines.worker", description="Answer a job's requests.")
    parser.add_argument("--store", required=True, metavar="URL", help="artifact store: local path or fsspec URL")
    parser.add_argument(
        "--storage-options", default="{}", metavar="JSON", help="options of its file system; never credentials"
    )
    parser.add_argument("--job", required=True, metavar="URI", help="the job, as a path within the store")
    parser.add_argument(
        "--index",
        type=int,
        default=int(os.environ.get("JOB_COMPLETION_INDEX", "0")),
        metavar="N",
        help="which share of the shards is ours (default $JOB_COMPLETION_INDEX, else 0)",
    )
    parser.add_argument("--indexes", type=int, default=1, metavar="N", help="into how many shares they are cut")
    parser.add_argument(
        "--drain-s", type=float, default=20.0, metavar="S", help="seconds for answers in flight after SIGTERM"
    )
    parser.add_argument("--until-stdin-closes", action="store_true", help="also stop when whoever started it is gone")
    return parser


if __name__ == "__main__":
    sys.exit(main())
