"""The command line `anven`: from `demo` and `migrate` to `gateway` and `rollout`.

Every command takes `--json`; what they have in common, exit codes too, stands in `cli_output.py`.
"""

from __future__ import annotations

import json
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from anven_pipelines.cli_golden import golden_app
from anven_pipelines.cli_live import live_app
from anven_pipelines.cli_output import BAD_INPUT, NEGATIVE, NOT_DONE, AsJson, Output, home_folder, reported, stderr
from anven_pipelines.nano.demo_world import Breakage

app = typer.Typer(
    name="anven",
    help="Move an LLM workload from a paid API to an open model you serve yourself, on evidence you can trust.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(live_app)
app.add_typer(golden_app, name="golden")


@app.command()
def migrate(
    file: Annotated[Path, typer.Argument(help="Migration file (YAML), one workload.", show_default=False)],
    *,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Ask the target again, in the search too, instead of reusing its answers.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run a workload's chain from its request logs to the verdict: GO, NO-GO or INCONCLUSIVE.

    It materialises the same assets as the Dagster UI, where the run can be looked at afterwards (`anven dev`).
    Exits with 0 on GO and 1 on NO-GO or INCONCLUSIVE.
    """
    with reported(as_json=as_json) as output:
        from anven_pipelines.migrate import migrate_file  # noqa: PLC0415 - loads Dagster: not for --help

        epoch = datetime.now(UTC).isoformat() if fresh else ""
        verdict = migrate_file(file, home=home_folder(), epoch=epoch, console=stderr)
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
    to: Annotated[
        Path | None,
        typer.Option(
            help="Write the prompt of the newest verdict into this folder, for `anven gateway --prompts`.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the prompts that a workload's target is asked with now: before and after, why, and what they cost.

    With `--rewrites` it prints them as a section `prompt` with `mode: tested`.

    Edited and put into the migration file, they are a new version, tested again.

    With `--to` it writes what a canary has to serve: the prompt that the newest verdict, a GO, was given for.
    """
    with reported(as_json=as_json) as output:
        if to is not None:
            from anven_pipelines.prompt_export import export_prompt  # noqa: PLC0415 - loads Dagster: not for --help

            written = export_prompt(file, to, home=home_folder())
            if not output.tell(json.dumps(written._asdict() | {"path": str(written.path)})):
                typer.echo(
                    f"{written.path}: version {written.version[:12]}; serve it with `anven gateway --prompts {to}`"
                )
            return
        from anven_pipelines.prompt_view import read_prompt, show_prompt, show_rewrites  # noqa: PLC0415 - loads Dagster

        current = read_prompt(file, home=home_folder())
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
    with reported(as_json=as_json, interrupted="nothing of it is kept, the same command asks anew") as output:
        from anven_pipelines.load_run import load_file  # noqa: PLC0415 - loads Dagster: not for --help
        from anven_pipelines.load_view import show_load  # noqa: PLC0415

        report = load_file(file, home=home_folder(), console=stderr)
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
    with reported(as_json=as_json, interrupted="the same command starts the demo anew") as output:
        from anven_pipelines.demo import demonstrate, show_demonstration  # noqa: PLC0415 - loads Dagster: not for --help

        shown = demonstrate(home_folder(), breakage=breakage, calls=calls, seed=seed, console=stderr)
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
    with reported(as_json=as_json) as output:
        from anven_pipelines.dev_servers import serve  # noqa: PLC0415
        from anven_pipelines.migrate import register_partitions  # noqa: PLC0415

        def announce(urls: dict[str, str]) -> None:
            if not output.tell(json.dumps(urls)):
                hints = {"MLflow": "   (its runs: choose Model training at the top left)"}
                lines = [f"[bold]{name}[/bold]  {url}{hints.get(name, '')}" for name, url in urls.items()]
                stderr.print("\n".join(lines), soft_wrap=True)
                stderr.print("Ctrl-C stops both.")

        home = home_folder()
        register_partitions(home, stderr)
        serve(home, port=port, mlflow_port=mlflow_port, announce=announce, console=stderr)


@app.command()
def doctor(*, as_json: AsJson = False) -> None:
    """Say what is missing for a migration to run here, and how to mend it."""
    with reported(as_json=as_json) as output:
        from anven_pipelines.doctor import examine  # noqa: PLC0415

        findings = examine(home_folder())
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
    with reported(as_json=as_json) as output:
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
    with reported(as_json=as_json) as output:
        from anven_pipelines.migrate import filled_in, prepared  # noqa: PLC0415

        with prepared(home_folder()) as definitions:
            filled = filled_in(definitions)
        if not output.tell(json.dumps(filled._asdict(), default=list)):
            typer.echo(f"{filled.delivered} delivered, {filled.remaining} still waiting")
            for problem in filled.problems:
                stderr.print(problem)
    if filled.remaining:
        raise typer.Exit(NEGATIVE)


def main() -> None:
    """Run the command line."""
    try:
        app(prog_name="anven")
    except SystemExit as ended:
        # What the command line's parser found; it has shown it on stderr.
        explain = getattr(ended.__context__, "format_message", None)
        if ended.code == BAD_INPUT and "--json" in sys.argv and explain:
            Output(as_json=True).tell_error("InvalidInput", explain())
        raise


if __name__ == "__main__":
    main()
