"""Small builders for the tables that several tests need."""

from __future__ import annotations

from typing import Any

import polars as pl

from anven_pipelines.domain.evaluation import SCORES
from anven_pipelines.domain.golden import GOLDEN
from anven_pipelines.domain.inference import ANSWERS
from anven_pipelines.spec import Migration


def a_migration(**changes: Any) -> Migration:
    """Build a migration over recorded answers; keyword arguments replace whole sections."""
    return Migration.model_validate(
        {
            "workload": "support",
            "legacy": {"model": "legacy-model", "logs": "logs.jsonl"},
            "target": {"model": "target-model", "engine": "recorded", "answers": "answers.jsonl"},
            "grading": [{"kind": "json_field", "field": "answer"}],
            "golden": {"size": "all", "holdout": 1.0},
            "sign_off": {"quality_margin": 0.03, "waive": ["ttft", "cost", "safety"]},
        }
        | changes
    )


def scores_of(legacy: list[float | None], target: list[float | None], **columns: Any) -> pl.DataFrame:
    """Build sealed SCORES rows, each its own conversation; keyword arguments replace whole columns."""
    items = [f"item-{at:05d}" for at in range(len(legacy))]
    return SCORES.conform(
        pl.DataFrame(
            {
                "item_id": items,
                "cluster": items,
                "split": ["sealed"] * len(items),
                "application": ["helpdesk"] * len(items),
                "endpoint": ["chat"] * len(items),
                "task": ["qa"] * len(items),
                "length_band": ["short"] * len(items),
                "risk": ["unknown"] * len(items),
                "language": ["unknown"] * len(items),
                "weight": [1.0] * len(items),
                "role": ["traffic"] * len(items),
                "legacy_score": pl.Series(legacy, dtype=pl.Float64),
                "target_score": pl.Series(target, dtype=pl.Float64),
                "legacy_reason": [None if score is not None else "no answer logged" for score in legacy],
                "target_reason": [None if score is not None else "timed out" for score in target],
            }
            | columns
        )
    )


def paired_scores(*, both: int, lost: int, gained: int, neither: int = 0) -> pl.DataFrame:
    """Build binary SCORES from the four cells: both right, only legacy right, only target right, neither."""
    legacy = [1.0] * both + [1.0] * lost + [0.0] * gained + [0.0] * neither
    target = [1.0] * both + [0.0] * lost + [1.0] * gained + [0.0] * neither
    return scores_of(list(legacy), list(target))


def golden_of(items: int, **columns: Any) -> pl.DataFrame:
    """Build sealed GOLDEN rows with one question each."""
    ids = [f"item-{at:05d}" for at in range(items)]
    return GOLDEN.conform(
        pl.DataFrame(
            {
                "id": ids,
                "source_prompt": [f'[{{"content":"question {at}","role":"user"}}]' for at in range(items)],
                "model_config": ["{}"] * items,
                "ground_truth": [str(at) for at in range(items)],
                "source_output": [f'{{"answer": "{at}"}}' for at in range(items)],
                "cluster": ids,
                "split": ["sealed"] * items,
                "application": ["helpdesk"] * items,
                "endpoint": ["chat"] * items,
                "task": ["qa"] * items,
                "length_band": ["short"] * items,
                "risk": ["unknown"] * items,
                "language": ["unknown"] * items,
                "role": ["traffic"] * items,
                "weight": [1.0] * items,
            }
            | columns
        )
    )


def answers_of(outputs: list[str | None], **columns: Any) -> pl.DataFrame:
    """Build ANSWERS rows; None is an item that failed."""
    return ANSWERS.conform(
        pl.DataFrame(
            {
                "item_id": [f"item-{at:05d}" for at in range(len(outputs))],
                "status": ["failed" if output is None else "answered" for output in outputs],
                "reason": ["timed out" if output is None else None for output in outputs],
                "output": pl.Series(outputs, dtype=pl.String),
            }
            | columns
        )
    )
