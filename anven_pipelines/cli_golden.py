"""The commands `anven golden export` and `anven golden import`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from anven_pipelines.cli_output import AsJson, home_folder, reported

golden_app = typer.Typer(help="Take golden datasets to other tools, and in from them.", no_args_is_help=True)


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
    with reported(as_json=as_json) as output:
        from anven_pipelines import golden_exchange  # noqa: PLC0415 - loads Dagster: not for --help

        done = golden_exchange.export_golden(workload, home=home_folder(), to=to, form=form, sealed=sealed)
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
    with reported(as_json=as_json) as output:
        from anven_pipelines import golden_exchange  # noqa: PLC0415 - loads Dagster: not for --help

        done = golden_exchange.import_golden(source, workload=workload, home=home_folder())
        if not output.tell(json.dumps(done._asdict())):
            typer.echo(f"{done.items} items, {done.sealed_items} of them sealed; to judge on them, put this into the")
            typer.echo(f"migration file of {workload}:\n\ngolden:\n  version: {done.golden_dataset}")
