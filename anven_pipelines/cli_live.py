"""The commands that move production: `anven gateway`, `anven rollout` and `anven drill`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from anven_pipelines.cli_output import NEGATIVE, AsJson, home_folder, reported, stderr

live_app = typer.Typer()


@live_app.command()
def gateway(
    files: Annotated[
        list[Path], typer.Argument(help="Migration files (YAML); those with a section `gateway` are served.")
    ],
    *,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")] = 4000,
    host: Annotated[
        str, typer.Option(help="Address to listen at; 0.0.0.0 for other machines, by plain HTTP.")
    ] = "127.0.0.1",
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
        typer.Option(help="Further settings of LiteLLM (YAML): a cache, a database.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Serve workloads through a LiteLLM proxy that deals each user to the legacy or the target model; Ctrl-C stops it.

    Applications ask for the model WORKLOAD with their own prompts, with the key in ANVEN_GATEWAY_KEY. Who is served by
    which arm stands in the traffic file, whose changes act within a second.
    """
    with reported(as_json=as_json, interrupted="the gateway has stopped") as output:
        from anven_pipelines.gateway_run import GatewayPlan, Started, how_to_call, serve  # noqa: PLC0415

        folder = home_folder() / "gateway"
        plan = GatewayPlan(
            files,
            folder,
            traffic or folder / "traffic.json",
            events or folder / "events",
            prompts=prompts,
            port=port,
            litellm=litellm,
            host=host,
        )

        def announce(started: Started) -> None:
            told = {"url": started.url, "workloads": started.workloads, "traffic": str(started.traffic)}
            if not output.tell(json.dumps({**told, "events": str(started.events)})):
                typer.echo(how_to_call(started))
                stderr.print("Ctrl-C stops it.")

        serve(plan, announce=announce)


@live_app.command()
def rollout(  # noqa: PLR0913 - the options of all acts
    action: Annotated[
        Literal[
            "status",
            "start",
            "step",
            "approve",
            "pause",
            "resume",
            "abort",
            "override",
            "flag",
            "unflag",
            "kill",
            "unkill",
            "shadow",
            "notify",
            "judge",
        ],
        typer.Argument(help="What to do.", show_default=False),
    ],
    workload: Annotated[str, typer.Argument(help="Workload whose rollout it is.", show_default=False)],
    *,
    who: Annotated[
        str | None, typer.Option(help="Who does it; this machine's user where absent.", show_default=False)
    ] = None,
    reason: Annotated[str, typer.Option(help="Why, for the audit log.", show_default=False)] = "",
    hours: Annotated[float, typer.Option(help="How long an override counts.")] = 4.0,
    generation: Annotated[
        int | None,
        typer.Option(
            help="Generation that the act is meant for, as `status` told it; refused where another one is in force.",
            show_default=False,
        ),
    ] = None,
    flag: Annotated[
        str | None, typer.Option(help="Flag that `unflag` closes; the only open one where absent.", show_default=False)
    ] = None,
    share: Annotated[
        float | None,
        typer.Option(help="Share of legacy's requests that `shadow` mirrors to the target.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Look at a workload's canary, or act on it: every act is in the audit log, every look says what is missing.

    `start` needs a verdict that is GO. `step` decides anew and acts: proven harm rolls back, missing proof holds, only
    proof advances; the Dagster sensor `rollout` does the same every few seconds. `abort` gives all traffic back to
    legacy at once. An `override` counts once two people have signed it, and never over proven harm.

    `flag` says that somebody saw what has to be answered before more users get the target; `unflag` closes it.

    `kill` gives legacy all traffic at once, whatever the rollout or its log say; `unkill` turns that off once no
    attempt is open.

    `shadow --share 0.1` has the gateway mirror a tenth of legacy's requests to the target, whose answers nobody gets,
    within `gateway.shadow` of the migration file; `--share 0` ends it.

    `notify` sends what `rollout.notify` has not been told yet, as the sensor `rollout_notices` does, and exits with 1
    where notices still wait for a receiver. `judge` scores the answers that wait for `rollout.judge`, as the sensor
    `online_judge` does, and exits with 1 where something keeps them from being scored.
    """
    with reported(as_json=as_json) as output:
        from anven_pipelines.rollout_run import act, show_rollout  # noqa: PLC0415 - loads Dagster: not for --help

        report = act(
            workload,
            action,
            home=home_folder(),
            who=who,
            hours=hours,
            reason=reason,
            flag=flag,
            generation=generation,
            share=share,
        )
        if not output.tell(json.dumps(report)):
            show_rollout(report, Console())
    if action == "judge" and report["judge"] and report["judge"]["problem"]:
        raise typer.Exit(NEGATIVE)
    if action == "notify" and any(receiver["waiting"] for receiver in report["notices"]):
        raise typer.Exit(NEGATIVE)


@live_app.command()
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
    with reported(
        as_json=as_json, interrupted="the drill's route is legacy's again, and no drill was passed"
    ) as output:
        from anven_pipelines.drill_run import rehearse, show_drill  # noqa: PLC0415 - loads Dagster: not for --help

        found = rehearse(workload, home=home_folder(), url=url, who=who)
        if not output.tell(json.dumps({"workload": workload, **found.to_json()})):
            show_drill(workload, found, Console())
    if not found.passed:
        raise typer.Exit(NEGATIVE)
