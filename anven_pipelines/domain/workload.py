"""What an asset of a workload was declared with, so that an edit of the migration file is noticed downstream."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from anven_pipelines.domain.canonical import digest_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anven_pipelines.spec import Migration

SECTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "power_plan": ("legacy", "golden", "grading", "sign_off"),
    "golden_dataset": ("legacy", "golden", "grading", "risk"),
    "prompt_baseline": ("prompt",),
    "adapted_prompt": ("prompt",),
    "target_answers": ("target",),
    "scores": ("grading", "contract"),
    "load_benchmark": ("legacy", "target", "load"),
    "cost_model": ("legacy", "target", "load", "cost", "sign_off"),
}
"""Asset to the sections of the migration file that decide what it holds."""

SEARCHED: Final = ("target", "grading", "contract", "risk")
"""What else decides an adapted prompt that was looked for by asking the target."""


HOW_IT_IS_ASKED: Final = frozenset(
    {
        "concurrency",
        "timeout",
        "max_attempts",
        "api_key_env",
        "kv_cache_fraction",
        "max_num_seqs",
        "weights",  # where they lie; `digest` says which they are
        "licence",
        "gpu_memory_gib",
        "pods",
    }
)
"""Fields of a target that change no answer."""


PRICES: Final[Mapping[str, Mapping[str, frozenset[str]]]] = {
    "adapted_prompt": {"target": frozenset({"price"})},
    "target_answers": {"target": frozenset({"price"})},
    "load_benchmark": {
        "legacy": frozenset({"price"}),
        "target": frozenset({"price"}),
        "load": frozenset({"replica_usd_per_hour"}),
    },
}
"""Asset to the fields, by section, that say what it costs and change nothing that was measured."""


def sections_of(migration: Migration, asset: str) -> tuple[str, ...]:
    """Return the sections of the migration file that decide what the asset holds."""
    searched = asset == "adapted_prompt" and migration.prompt.mode != "declared"
    return SECTIONS[asset] + (SEARCHED if searched else ())


def declared_digest(migration: Migration, asset: str) -> str:
    """Return the digest of the sections that decide what the asset holds."""
    sections = migration.model_dump(mode="json", include=set(sections_of(migration, asset)))
    left_out = dict(PRICES.get(asset, {}))
    left_out["target"] = HOW_IT_IS_ASKED | left_out.get("target", frozenset())
    return digest_of(
        {
            name: {field: each for field, each in section.items() if field not in left_out[name]}
            if name in left_out and section is not None
            else section
            for name, section in sections.items()
        }
    )


def explain_stale(migration: Migration, asset: str, recorded: str | None) -> str | None:
    """Say how to mend an asset that was made from another version of the migration file; None if it was not."""
    if recorded == declared_digest(migration, asset):
        return None
    sections = ", ".join(sections_of(migration, asset))
    return (
        f"workload {migration.workload!r}: the migration file changed in {sections} since {asset} was materialised; "
        f"materialise {asset} and what follows it again"
    )
