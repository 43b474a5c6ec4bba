"""What a person sees who opens the Dagster UI and MLflow of `anven dev` and materialises the samples."""

from __future__ import annotations

import json
import os
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from playwright.sync_api import expect, sync_playwright

from tests.dev_command import anven_dev, copy_samples, wait_until
from tests.mlflow_server import free_uri

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from playwright.sync_api import Page

    from tests.dev_command import Dev

pytestmark = [pytest.mark.browser, pytest.mark.timeout(420)]

CHROMIUM: Final = "/usr/bin/chromium"
# In a container without a user namespace or a GPU, and without anything that calls home.
SWITCHES: Final = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--no-first-run",
)
# Read before the session takes all of the user's ANVEN_ settings away.
SCREENSHOTS: Final = Path(os.environ["ANVEN_SCREENSHOTS"]).resolve() if "ANVEN_SCREENSHOTS" in os.environ else None
PATIENCE_MS: Final = 30_000
RUNS_S: Final = 240.0
ASSETS: Final = {
    "request_log",
    "rejected_lines",
    "workload_inventory",
    "power_plan",
    "golden_dataset",
    "prompt_baseline",
    "adapted_prompt",
    "legacy_answers",
    "target_answers",
    "load_benchmark",
    "scores",
    "scorecard",
    "cost_model",
    "sign_off",
    "produc…_regression",  # as the graph shortens it
}
GOOD, REGRESSED = "support-sample", "support-sample-regressed"
LAUNCH: Final = """
mutation Launch($params: ExecutionParams!) {
  launchPipelineExecution(executionParams: $params) {
    __typename
    ... on LaunchRunSuccess { run { runId } }
    ... on PythonError { message }
    ... on InvalidSubsetError { message }
    ... on RunConfigValidationInvalid { errors { message } }
  }
}"""
STATUS: Final = "query Status($run: ID!) { runOrError(runId: $run) { ... on Run { status } } }"
DAYS: Final = '{ assetNodeOrError(assetKey: {path: ["request_log"]}) { ... on AssetNode { partitionKeys } } }'


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    """Serve the samples, with every log day and both workloads materialised as the UI would."""
    ports = [int(free_uri().rpartition(":")[2]) for _ in range(2)]
    with anven_dev(copy_samples(tmp_path_factory.mktemp("dev")), port=ports[0], mlflow_port=ports[1]) as running:
        days = ask(running, DAYS)["assetNodeOrError"]["partitionKeys"]
        assert days == ["2026-10-05", "2026-10-06", "2026-10-07"]
        outcomes = finished(running, [launch(running, "request_log_job", day) for day in days])
        assert outcomes == ["SUCCESS"] * len(days)
        # One after the other: both draw on one log, and the items on which a target failed are sealed for no other.
        for workload, outcome in ((GOOD, "SUCCESS"), (REGRESSED, "FAILURE")):
            assert finished(running, [launch(running, "migration", workload)]) == [outcome]
        yield running


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(SWITCHES))
        opened = browser.new_page(viewport={"width": 1600, "height": 1200})
        opened.set_default_timeout(PATIENCE_MS)
        expect.set_options(timeout=PATIENCE_MS)
        yield opened
        browser.close()


@pytest.fixture
def shoot(page: Page, tmp_path: Path) -> Callable[[str], None]:
    """Return what keeps a screenshot, in ANVEN_SCREENSHOTS where that is set."""
    folder = SCREENSHOTS or tmp_path
    folder.mkdir(parents=True, exist_ok=True)

    def keep(name: str) -> None:
        page.screenshot(path=folder / f"{name}.png")

    return keep


def test_the_asset_graph_shows_every_asset(dev: Dev, page: Page, shoot: Callable[[str], None]) -> None:
    page.goto(f"{dev.dagster}/asset-groups")
    expect(page.get_by_text("monitor", exact=True).last).to_be_visible()
    expect(page.get_by_text("Materialize all")).to_be_visible()
    page.mouse.click(1000, 250)
    page.keyboard.press("Alt+KeyE")  # expand all groups
    for asset in sorted(ASSETS):
        expect(page.get_by_text(asset, exact=True).last).to_be_visible()
    shoot("asset-graph")


def test_the_scorecard_shows_its_summary_and_draws_its_chart(
    dev: Dev, page: Page, shoot: Callable[[str], None]
) -> None:
    page.goto(f"{dev.dagster}/assets/scorecard?view=partitions&partition={GOOD}")
    summary = page.get_by_role("table").filter(has_text="open items").last
    expect(summary).to_contain_text("not worse")
    expect(summary).to_contain_text("task = total")
    shoot("scorecard")
    row = page.locator("tr", has=page.get_by_text("chart", exact=True))
    row.get_by_text("[Show Markdown]").click()
    chart = page.get_by_role("img", name="interval chart")
    expect(chart).to_be_visible()
    assert chart.evaluate("image => image.naturalWidth") > 0
    shoot("scorecard-chart")


def test_the_verdict_stands_first_in_the_sign_off(dev: Dev, page: Page, shoot: Callable[[str], None]) -> None:
    page.goto(f"{dev.dagster}/assets/sign_off?view=partitions&partition={GOOD}")
    first = page.get_by_role("table").filter(has_text="criteria").first.locator("tr").first
    expect(first).to_have_text("verdictGO")
    expect(page.get_by_text("GO. quality, missingness, segments, holdout are met").first).to_be_visible()
    shoot("sign-off")


def test_the_gate_shows_that_it_failed_and_why(dev: Dev, page: Page, shoot: Callable[[str], None]) -> None:
    page.goto(f"{dev.dagster}/assets/sign_off?view=checks&checkDetail=verdict_is_go")
    page.get_by_text("Execution history").click()
    failed = page.get_by_role("row").filter(has_text="NO-GO. quality is not met: worse than the margin is proven")
    expect(failed).to_contain_text("Failed")
    expect(
        page.get_by_role("row").filter(has_text="GO. quality, missingness, segments, holdout are met")
    ).to_contain_text("Passed")
    shoot("gate-history")
    page.goto(f"{dev.dagster}/assets/sign_off?view=partitions&partition={REGRESSED}")
    expect(page.get_by_text("worse than the margin is proven").first).to_be_visible()
    expect(page.get_by_text("NO-GO", exact=True)).to_be_visible()
    shoot("sign-off-regressed")


@pytest.mark.parametrize(
    ("asset", "partition", "shown"),
    [
        ("golden_dataset", GOOD, "sealed_items"),
        ("cost_model", GOOD, "neither a price nor a logged cost"),
        ("request_log", "2026-10-06", "support-2026-10-06.jsonl.gz"),
        ("rejected_lines", "2026-10-06", "reason"),
    ],
)
def test_a_materialisation_says_what_it_made(
    asset: str, partition: str, shown: str, dev: Dev, page: Page, shoot: Callable[[str], None]
) -> None:
    page.goto(f"{dev.dagster}/assets/{asset}?view=partitions&partition={partition}")
    expect(page.get_by_text(shown).first).to_be_visible()
    expect(page.get_by_text("mlflow_run", exact=True)).to_be_visible()
    shoot(asset)


def test_mlflow_lists_one_run_per_step(dev: Dev, page: Page, shoot: Callable[[str], None]) -> None:
    page.goto(f"{dev.mlflow}/#/experiments")
    for experiment in (f"anven/{GOOD}", f"anven/{REGRESSED}", "anven/request-logs"):
        expect(page.locator("a", has_text=experiment).first).to_be_visible()
    shoot("mlflow-experiments")
    page.goto(f"{dev.dagster}/assets/sign_off?view=partitions&partition={GOOD}")
    link = page.locator("tr", has=page.get_by_text("mlflow_run", exact=True)).get_by_role("link").first
    page.goto(str(link.get_attribute("href")))
    expect(page.get_by_text("quality_margin").first).to_be_visible()
    shoot("mlflow-run")


def ask(dev: Dev, query: str, variables: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Ask the GraphQL endpoint that the UI itself asks."""
    body = json.dumps({"query": query, "variables": variables or {}}).encode()
    request = urllib.request.Request(  # noqa: S310 - http on loopback
        f"{dev.dagster}/graphql", body, {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 - http on loopback
        answered = json.load(answer)
    assert not answered.get("errors"), answered["errors"]
    data: dict[str, Any] = answered["data"]
    return data


def launch(dev: Dev, job: str, partition: str) -> str:
    """Launch a job's run of one partition with the mutation that the UI sends."""
    params = {
        "selector": {
            "repositoryName": "__repository__",
            "repositoryLocationName": "anven_pipelines.definitions",
            "pipelineName": job,
        },
        "mode": "default",
        "runConfigData": {},
        "executionMetadata": {"tags": [{"key": "dagster/partition", "value": partition}]},
    }
    launched = ask(dev, LAUNCH, {"params": params})["launchPipelineExecution"]
    assert launched["__typename"] == "LaunchRunSuccess", launched
    return str(launched["run"]["runId"])


def finished(dev: Dev, runs: Sequence[str]) -> list[str]:
    """Wait for runs to end and return how they did."""

    def statuses() -> list[str]:
        return [ask(dev, STATUS, {"run": run})["runOrError"]["status"] for run in runs]

    wait_until(lambda: set(statuses()) <= {"SUCCESS", "FAILURE", "CANCELED"}, RUNS_S, "the runs did not end")
    return statuses()


def test_an_act_on_a_rollout_is_launched_from_the_launchpad(dev: Dev, page: Page, shoot: Callable[[str], None]) -> None:
    page.goto(f"{dev.dagster}/locations/anven_pipelines.definitions/jobs/rollout_act/playground")
    expect(page.locator(".CodeMirror").first).to_be_visible()
    act = {"workload": GOOD, "act": "flag", "who": "dr-li", "reason": "doses look wrong"}
    config = json.dumps({"ops": {"act_on_rollout": {"config": act}}})
    page.evaluate("text => document.querySelector('.CodeMirror').CodeMirror.setValue(text)", config)
    page.get_by_role("button", name="Launch Run").click()
    page.wait_for_url("**/runs/*")
    expect(page.get_by_text("flag by dr-li")).to_be_visible()
    shoot("rollout_act")
