"""The command line `anven`: from `demo` and `migrate` to `gateway` and `rollout`.

Every command takes `--json` and then prints one JSON object on stdout; all else goes to stderr. Exit codes: 0 it did
its job, 1 the verdict or a check is negative, 2 bad input, 3 it could not be done, 130 interrupted.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from sqlalchemy.exc import SQLAlchemyError

from anven_pipelines.domain.errors import AnvenError, CheckFailed, InvalidInput, UnavailableService
from anven_pipelines.nano.demo_world import Breakage

if TYPE_CHECKING:
    from collections.abc import Iterator

NEGATIVE: Final = 1
BAD_INPUT: Final = 2
NOT_DONE: Final = 3
INTERRUPTED: Final = 130
_GOES_ON: Final = "what was durable is kept, the same command goes on from there"

app = typer.Typer(
    name="anven",
    help="Move an LLM workload from a paid API to an open model you serve yourself, on evidence you can trust.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
stderr = Console(stderr=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout; everything else on stderr.")]


@app.command()
def migrate(
    file: Annotated[Path, typer.Argument(help="Migration file (YAML), one workload.", show_default=False)],
    *,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Ask the target again instead of reusing the answers it gave before.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run a workload's chain from its request logs to the verdict: GO, NO-GO or INCONCLUSIVE.

    It materialises the same assets as the Dagster UI, where the run can be looked at afterwards (`anven dev`).
    Exits with 0 on GO and 1 on NO-GO or INCONCLUSIVE.
    """
    with _reported(as_json=as_json) as output:
        from anven_pipelines.migrate import migrate_file  # noqa: PLC0415 - loads Dagster: not for --help

        epoch = datetime.now(UTC).isoformat() if fresh else ""
        verdict = migrate_file(file, home=_home(), epoch=epoch, console=stderr)
        if not output.tell(verdict.to_json()):
            from anven_pipelines.verdict_view import show  # noqa: PLC0415

            show(verdict, Console())
    if verdict.verdict != "GO":
        raise typer.Exit(NEGATIVE)


@app.command()
def prompt(
    file: Annotated[Path, typer.Argument(help="Migration file (YAML) of the workload.", show_default=False)],
    *,
    rewrites: Annotated[
        bool, typer.Option("--rewrites", help="Print it as a section of the migration file, to edit by hand.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show the prompts that a workload's target is asked with now: before and after, why, and what they cost.

    With `--rewrites` it prints them as a section `prompt` with `mode: tested`.

    Edited and put into the migration file, they are a new version, tested again.
    """
    with _reported(as_json=as_json) as output:
        from anven_pipelines.prompt_view import read_prompt, show_prompt, show_rewrites  # noqa: PLC0415 - loads Dagster

        current = read_prompt(file, home=_home())
        if output.tell(json.dumps(current.to_json())):
            return
        if rewrites:
            typer.echo(show_rewrites(current, stderr), nl=False)
        else:
            show_prompt(current, Console())


@app.command()
def load(
    file: Annotated[Path, typer.Argument(help="Migration file (YAML) with a section `load`.", show_default=False)],
    *,
    as_json: AsJson = False,
) -> None:
    """Put the served target under rising load with the workload's own prompts: at which rate does it keep the SLO?

    It materialises `load_benchmark` and what it rests on, as the Dagster UI would; the requests are real. Exits with 0
    when a rate is proven to keep the service level, 1 when none is, 3 when nothing could be measured.
    """
    with _reported(as_json=as_json, interrupted="nothing of it is kept, the same command asks anew") as output:
        from anven_pipelines.load_run import load_file  # noqa: PLC0415 - loads Dagster: not for --help
        from anven_pipelines.load_view import show_load  # noqa: PLC0415

        report = load_file(file, home=_home(), console=stderr)
        if not output.tell(report.model_dump_json()):
            show_load(report, Console())
    if report.target.sustained_rate is None:
        raise typer.Exit(NOT_DONE if report.target.status == "unmeasured" else NEGATIVE)


@app.command()
def demo(
    *,
    breakage: Annotated[
        Breakage | None,
        typer.Option(
            "--break",
            help="Make the target worse in this way: refused at once, or, with `-later`, rolled back from its users.",
            show_default=False,
        ),
    ] = None,
    calls: Annotated[int, typer.Option(min=400, max=20_000, help="How many calls the legacy log gets.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of the traffic: who asks what and when.")] = 2026,
    as_json: AsJson = False,
) -> None:
    """Migrate a small workload between two tiny real models, live on this machine; no GPU, key or account.

    It serves both models, sends the legacy one some traffic, and migrates with the legacy prompts as they are and with
    prompts that it searches and proves better. After a GO users ask a gateway, and the canary moves them to the target
    in stages. Exits with 0 when all users are the target's at the end, and 1 otherwise.
    """
    with _reported(as_json=as_json, interrupted="the same command starts the demo anew") as output:
        from anven_pipelines.demo import demonstrate, show_demonstration  # noqa: PLC0415 - loads Dagster: not for --help

        shown = demonstrate(_home(), breakage=breakage, calls=calls, seed=seed, console=stderr)
        if not output.tell(json.dumps(shown.to_json())):
            show_demonstration(shown, Console())
    if not shown.is_moved:
        raise typer.Exit(NEGATIVE)


@app.command()
def dev(
    *,
    port: Annotated[int, typer.Option(help="Port of the Dagster UI; the next free one where it is taken.")] = 3000,
    mlflow_port: Annotated[int, typer.Option(help="Port of MLflow; the next free one where it is taken.")] = 5000,
    as_json: AsJson = False,
) -> None:
    """Open the Dagster UI and MLflow together on this machine; Ctrl-C stops both."""
    with _reported(as_json=as_json) as output:
        from anven_pipelines.dev_servers import serve  # noqa: PLC0415
        from anven_pipelines.migrate import register_partitions  # noqa: PLC0415

        def announce(urls: dict[str, str]) -> None:
            if not output.tell(json.dumps(urls)):
                stderr.print("\n".join(f"[bold]{name}[/bold]  {url}" for name, url in urls.items()))
                stderr.print("Ctrl-C stops both.")

        home = _home()
        register_partitions(home, stderr)
        serve(home, port=port, mlflow_port=mlflow_port, announce=announce, console=stderr)


@app.command()
def gateway(
    files: Annotated[
        list[Path], typer.Argument(help="Migration files (YAML); those with a section `gateway` are served.")
    ],
    *,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")] = 4000,
    traffic: Annotated[
        Path | None, typer.Option(help="Traffic file with the shares; made where it is missing.", show_default=False)
    ] = None,
    events: Annotated[Path | None, typer.Option(help="Folder of the request event log.", show_default=False)] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Folder of adapted prompts, WORKLOAD.json each; else the files' rewrites.", show_default=False
        ),
    ] = None,
    litellm: Annotated[
        Path | None,
        typer.Option(help="Further settings of LiteLLM (YAML): a cache, rate limits, callbacks.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Serve workloads through a LiteLLM proxy that deals each user to the legacy or the target model; Ctrl-C stops it.

    Applications ask for the model WORKLOAD with their own prompts, with the key in ANVEN_GATEWAY_KEY. Who is served by
    which arm stands in the traffic file, whose changes act within a second.
    """
    with _reported(as_json=as_json, interrupted="the gateway has stopped") as output:
        from anven_pipelines.gateway_run import GatewayPlan, Started, how_to_call, serve  # noqa: PLC0415

        folder = _home() / "gateway"
        plan = GatewayPlan(
            files, folder, traffic or folder / "traffic.json", events or folder / "events", prompts, port, litellm
        )

        def announce(started: Started) -> None:
            told = {"url": started.url, "workloads": started.workloads, "traffic": str(started.traffic)}
            if not output.tell(json.dumps({**told, "events": str(started.events)})):
                typer.echo(how_to_call(started))
                stderr.print("Ctrl-C stops it.")

        serve(plan, announce=announce)


@app.command()
def rollout(
    action: Annotated[
        Literal["status", "start", "step", "approve", "pause", "resume", "abort", "override", "notify"],
        typer.Argument(help="What to do.", show_default=False),
    ],
    workload: Annotated[str, typer.Argument(help="Workload whose rollout it is.", show_default=False)],
    *,
    who: Annotated[
        str | None, typer.Option(help="Who does it; this machine's user where absent.", show_default=False)
    ] = None,
    reason: Annotated[str, typer.Option(help="Why, for the audit log.", show_default=False)] = "",
    hours: Annotated[float, typer.Option(help="How long an override counts.")] = 4.0,
    as_json: AsJson = False,
) -> None:
    """Look at a workload's canary, or act on it: every act is in the audit log, every look says what is missing.

    `start` needs a verdict that is GO. `step` decides anew and acts: proven harm rolls back, missing proof holds, only
    proof advances; the Dagster sensor `rollout` does the same every few seconds. `abort` gives all traffic back to
    legacy at once. An `override` counts once two people have signed it, and never over proven harm.

    `notify` sends what `rollout.notify` has not been told yet, as the sensor `rollout_notices` does.
    """
    with _reported(as_json=as_json) as output:
        from anven_pipelines.rollout_run import act, show_rollout  # noqa: PLC0415 - loads Dagster: not for --help

        report = act(workload, action, home=_home(), who=who, hours=hours, reason=reason)
        if not output.tell(json.dumps(report)):
            show_rollout(report, Console())


@app.command()
def drill(
    workload: Annotated[str, typer.Argument(help="Workload whose roll back is rehearsed.", show_default=False)],
    *,
    url: Annotated[
        str | None,
        typer.Option(help="Base URL of the gateway; ANVEN_GATEWAY_URL, else port 4000 here.", show_default=False),
    ] = None,
    who: Annotated[
        str | None, typer.Option(help="Who does it; this machine's user where absent.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Rehearse a workload's roll back on the running gateway with synthetic traffic, and time the way to 100 % legacy.

    It has a route of its own beside the real one, so no application is touched; the route is given to the target and
    rolled back as the controller does it. It needs ANVEN_GATEWAY_KEY and makes at most 48 requests (some 25 as a
    rule), each of some 20 tokens with at most 16 in the answer, to both arms. Exits with 0 when every worker followed
    within `rollout.drill_s` and no request failed, and 1 otherwise; then, or without a drill, no stage is advanced.
    """
    with _reported(
        as_json=as_json, interrupted="the drill's route is legacy's again, and no drill was passed"
    ) as output:
        from anven_pipelines.drill_run import rehearse, show_drill  # noqa: PLC0415 - loads Dagster: not for --help

        found = rehearse(workload, home=_home(), url=url, who=who)
        if not output.tell(json.dumps({"workload": workload, **found.to_json()})):
            show_drill(workload, found, Console())
    if not found.passed:
        raise typer.Exit(NEGATIVE)


@app.command()
def doctor(*, as_json: AsJson = False) -> None:
    """Say what is missing for a migration to run here, and how to mend it."""
    with _reported(as_json=as_json) as output:
        from anven_pipelines.doctor import examine  # noqa: PLC0415

        findings = examine(_home())
        report = {"ok": all(each.ok for each in findings), "checks": [each._asdict() for each in findings]}
        if not output.tell(json.dumps(report)):
            marks = {
                "ok": "[green]ok[/green]     ",
                "warning": "[yellow]warning[/yellow]",
                "problem": "[red]problem[/red]",
            }
            console = Console(soft_wrap=True, highlight=False)
            for each in findings:
                console.print(f"{marks[each.status]}  [bold]{each.name}[/bold]: {escape(each.found)}")
                if each.remedy:
                    console.print(f"         mend it: {escape(each.remedy)}")
    if not all(each.ok for each in findings):
        raise typer.Exit(NEGATIVE)


@app.command()
def weights(
    model: Annotated[
        str,
        typer.Argument(
            help="Model in Hugging Face layout: a folder, s3://..., hf://ORG/NAME or oci:///PATH.", show_default=False
        ),
    ],
    *,
    revision: Annotated[
        str | None, typer.Option(help="Commit for hf://, digest of the manifest for oci://.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print the digest that a migration file pins a model's weights with, and how much memory the model takes."""
    with _reported(as_json=as_json) as output:
        from anven_pipelines.domain.model_fit import memory  # noqa: PLC0415
        from anven_pipelines.worker.weight_sources import ModelCaches, source_of  # noqa: PLC0415
        from anven_pipelines.worker.weights import Weights  # noqa: PLC0415

        place = model if "://" in model else str(Path(model).absolute())
        found = Weights.of(source_of(place, revision, hub=ModelCaches.of(os.environ).hub))
        shape, digest = found.shape(), found.digest()
        kv_bytes = shape.kv_bytes_per_token(bytes_each=shape.weight_bytes_each)
        facts = {"digest": digest, "weight_bytes": shape.weight_bytes, "kv_bytes_per_token": kv_bytes}
        if not output.tell(json.dumps(facts)):
            typer.echo(f"digest: {digest}")
            stderr.print(
                f"weights of {memory(shape.weight_bytes)} in {', '.join(found.files)}; "
                f"{kv_bytes:,} bytes of keys and values per token, up to {shape.context_length:,} tokens a request",
                highlight=False,
                soft_wrap=True,
            )


@app.command("fill-mlflow")
def fill_mlflow(*, as_json: AsJson = False) -> None:
    """Deliver the runs that MLflow could not take when they happened."""
    with _reported(as_json=as_json) as output:
        from anven_pipelines.migrate import prepared, tracking_of  # noqa: PLC0415

        with prepared(_home()) as definitions:
            filled = tracking_of(definitions).fill()
        if not output.tell(json.dumps(filled._asdict(), default=list)):
            typer.echo(f"{filled.delivered} delivered, {filled.remaining} still waiting")
            for problem in filled.problems:
                stderr.print(problem)
    if filled.remaining:
        raise typer.Exit(NEGATIVE)


golden_app = typer.Typer(help="Take golden datasets to other tools, and in from them.", no_args_is_help=True)
app.add_typer(golden_app, name="golden")


@golden_app.command("export")
def export_golden(
    workload: Annotated[str, typer.Argument(help="Workload whose frozen version is written.", show_default=False)],
    *,
    to: Annotated[
        Path | None, typer.Option("--to", help="File or folder to make; not for mlflow.", show_default=False)
    ] = None,
    form: Annotated[
        Literal["jsonl", "parquet", "huggingface", "mlflow"], typer.Option("--as", help="What to write.")
    ] = "jsonl",
    sealed: Annotated[
        bool, typer.Option("--sealed", help="Let the sealed items out too: it is ledgered, and burns the holdout.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a workload's golden dataset; the sealed items stay behind unless --sealed."""
    with _reported(as_json=as_json) as output:
        from anven_pipelines import golden_exchange  # noqa: PLC0415 - loads Dagster: not for --help

        done = golden_exchange.export_golden(workload, home=_home(), to=to, form=form, sealed=sealed)
        if not output.tell(json.dumps(done._asdict())):
            typer.echo(f"{done.items} items ({done.sealed_items} sealed) of version {done.golden_dataset} in {done.to}")


@golden_app.command("import")
def import_golden(
    source: Annotated[
        str,
        typer.Argument(help="JSON lines, Parquet, a Hugging Face folder, or mlflow:NAME.", show_default=False),
    ],
    *,
    workload: Annotated[
        str,
        typer.Option("--workload", help="Workload that it is for: its name or its migration file.", show_default=False),
    ],
    as_json: AsJson = False,
) -> None:
    """Freeze a golden dataset made elsewhere; `golden.version` in the migration file judges on it."""
    with _reported(as_json=as_json) as output:
        from anven_pipelines import golden_exchange  # noqa: PLC0415 - loads Dagster: not for --help

        done = golden_exchange.import_golden(source, workload=workload, home=_home())
        if not output.tell(json.dumps(done._asdict())):
            typer.echo(f"{done.items} items, {done.sealed_items} of them sealed; to judge on them, put this into the")
            typer.echo(f"migration file of {workload}:\n\ngolden:\n  version: {done.golden_dataset}")


def main() -> None:
    """Run the command line."""
    try:
        app(prog_name="anven")
    except SystemExit as ended:
        # What the command line's parser found; it has shown it on stderr.
        explain = getattr(ended.__context__, "format_message", None)
        if ended.code == BAD_INPUT and "--json" in sys.argv and explain:
            _Output(as_json=True).tell_error("InvalidInput", explain())
        raise


class _Output:
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
def _reported(*, as_json: bool, interrupted: str = _GOES_ON) -> Iterator[_Output]:
    """Turn the product's errors into one clear message and an exit code, and SIGTERM into what Ctrl-C does.

    Args:
        as_json: Print one JSON object.
        interrupted: What an interrupt means for what was done so far.
    """
    output = _Output(as_json=as_json)
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


def _fail(error: AnvenError, output: _Output, *, code: int) -> NoReturn:
    output.tell_error(type(error).__name__, str(error))
    stderr.print(f"[red]error[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
    sys.exit(code)


def _home() -> Path:
    """Return the folder of local state, made absolute for the processes that are started from here."""
    from anven_pipelines.resources.deployments import adopt_home  # noqa: PLC0415

    return adopt_home()


if __name__ == "__main__":
    main()
