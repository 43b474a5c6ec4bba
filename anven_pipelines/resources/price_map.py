"""Token prices from the price map that LiteLLM bundles.

The map is read as the data file it is: importing litellm takes 1.7 s and tries to download a newer map.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.metadata import distribution
from pathlib import Path
from typing import Any, Final

from anven_pipelines.spec_values import Price

_MAP: Final = "litellm/model_prices_and_context_window_backup.json"


def litellm_price(model: str) -> Price | None:
    """Return the list price of a model's tokens, or None where the map has none.

    Args:
        model: Model name as in the logs, bare or as `provider/model`.

    Returns:
        The base price, without the tiers that some providers charge for long prompts. A model listed at zero is
        not priced in tokens, or priced elsewhere: its price is unknown, not nothing.
    """
    entry = _entry(model)
    per_input, per_output = entry.get("input_cost_per_token"), entry.get("output_cost_per_token")
    if per_input is None or per_output is None or not (per_input or per_output):
        return None
    cached = entry.get("cache_read_input_token_cost")
    return Price(
        input_usd_per_million=_per_million(per_input),
        output_usd_per_million=_per_million(per_output),
        cached_usd_per_million=None if cached is None else _per_million(cached),
        source=f"LiteLLM {distribution('litellm').version} bundled price map",
    )


def _entry(model: str) -> dict[str, Any]:
    """Find a model under its full name, else under its bare name if the map gives it that provider."""
    prices = _price_map()
    if model in prices:
        return prices[model]
    provider, _, bare = model.partition("/")
    entry = prices.get(bare, {})
    return entry if entry.get("litellm_provider") == provider else {}


@cache
def _price_map() -> dict[str, dict[str, Any]]:
    """Read the map once for each process: 3 MB, 30 ms."""
    prices: dict[str, dict[str, Any]] = json.loads(Path(str(distribution("litellm").locate_file(_MAP))).read_bytes())
    return prices


def _per_million(usd: float) -> float:
    """Scale a price per token; rounding takes off what binary fractions add (2.5e-06 becomes 2.5)."""
    return round(usd * 1e6, 9)
