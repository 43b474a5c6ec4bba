"""The price map that LiteLLM bundles is where and what we take it for."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest

from anven_pipelines.resources.price_map import litellm_price


def test_a_known_model_has_its_list_price_with_its_source() -> None:
    price = litellm_price("gpt-4o-2024-08-06")
    assert price is not None
    assert (price.input_usd_per_million, price.output_usd_per_million) == (2.5, 10.0)
    assert price.cached_usd_per_million == 1.25
    assert price.source == f"LiteLLM {version('litellm')} bundled price map"


def test_the_provider_may_stand_before_the_name() -> None:
    assert litellm_price("openai/gpt-4o-2024-08-06") == litellm_price("gpt-4o-2024-08-06")


def test_a_name_of_its_own_under_a_provider_wins() -> None:
    azure = litellm_price("azure/eu/gpt-4o-2024-08-06")
    assert azure is not None
    assert azure.input_usd_per_million > 2.5


@pytest.mark.parametrize(
    "model",
    [
        "ANVEN-3b-instruct",
        "anthropic/gpt-4o-2024-08-06",  # another provider's model
        "dall-e-3",  # priced by the image
        "ollama/llama3",  # listed at zero: nobody knows what serving it costs
        "",
        "/",
    ],
)
def test_a_model_without_a_token_price_has_none(model: str) -> None:
    assert litellm_price(model) is None


def test_prices_are_those_that_litellm_itself_reads_and_need_no_import_of_it() -> None:
    # In its own interpreter: litellm must be absent before, and reads its settings when it is imported.
    program = """
import sys
from anven_pipelines.resources.price_map import litellm_price
ours = {name: litellm_price(name) for name in ("gpt-4o-mini", "gpt-3.5-turbo-0125", "mistral/mistral-large-latest")}
assert "litellm" not in sys.modules
import litellm
for name, price in ours.items():
    info = litellm.get_model_info(name)
    assert abs(price.input_usd_per_million - info["input_cost_per_token"] * 1e6) < 1e-6, name
    assert abs(price.output_usd_per_million - info["output_cost_per_token"] * 1e6) < 1e-6, name
print("agree")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.strip() == "agree", done.stderr
