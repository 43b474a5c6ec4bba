"""The migration that the demo declares: from legacy-nano to anven-nano, as the legacy prompts stand and adapted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

from anven_pipelines.nano.prompts import ANVEN_SYSTEM, ANVEN_USER, LEGACY_PATTERN

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anven_pipelines.nano.tasks import Task

Breakage = Literal["regress", "slow", "errors", "cost", "regress-later", "slow-later", "errors-later"]

LEGACY: Final = "legacy-nano"
TARGET: Final = "anven-nano"

# What tells the legacy applications' prompts apart: a phrase of each task's system message.
_LEGACY_SIGNS: Final[Mapping[Task, str]] = {
    "answer": "Use only the context to find the answer",
    "intent": "Decide which department should handle it",
    "tool": "Reply with one JSON object that calls a tool",
}
_PRICE_SOURCE: Final = "example prices of the demo; no provider charges for these models"
_LEGACY_PRICE: Final = {"input_usd_per_million": 2.5, "output_usd_per_million": 10.0, "source": _PRICE_SOURCE}
_TARGET_PRICE: Final = {"input_usd_per_million": 0.2, "output_usd_per_million": 0.4, "source": _PRICE_SOURCE}
_TOO_DEAR: Final = {"input_usd_per_million": 9.0, "output_usd_per_million": 36.0, "source": _PRICE_SOURCE}

_LEAST_DELAY_MS: Final = 800.0
_SLOW_TIMES: Final = 2.0
_SMALL: Final = {"size": 240, "holdout": 1.0}
# Open are the items that the first verdict burnt and as many again: half are searched on, half prove the gain. With 63
# to prove it a gain of 17 points was not proven, and 22 right answers were too few for the guard.
_SEARCHED: Final = {"size": "all", "holdout": 0.5}
_DECLARED: Final = {"size": "all", "holdout": 0.8}
_WRITTEN: Final[dict[str, Any]] = {"policies": []}  # no sentence of the invented legacy prompts has to stay
# Where one prompt changes, the guard has as few as 24 right answers in 17 conversations: with none lost they prove
# 19.6 %, 34 in 20 prove 16 %, and a guard of 15 % refused a gain of 39 points. No conversation asks two applications:
# 77 answers of two prompts in 53 conversations prove 6.9 %.
_SEARCH: Final = _WRITTEN | {
    "mode": "full",
    "strategies": ["racing"],
    "budget": {"calls": 5000},
    "validation": 0.5,
    "guard_margin": 0.2,
}
# As strict as some 700 calls can be; benchmarks/demo_canary.py says how often a good target gets through. Times are
# those of a proxy and two models on one machine. Nobody looks at safety here, and a cost takes 500 units of each arm to
# be bounded; the verdict has judged it.
_ROLLOUT: Final = {
    "stages": [{"share": 0.5, "soak": "10s"}, {"share": 1.0, "soak": "10s"}],
    "limits": {"quality": 0.15, "errors": 0.1, "ttft_ms": 1000, "latency_ms": 2000},
    "settle": "1s",
    "label_delay": "4s",
    "stale": "30s",
    "least_units": 150,
    "waive": ["drill", "safety", "cost"],
}
_LATER: Final[Mapping[Breakage | None, Mapping[str, float]]] = {
    "regress-later": {"regress": 1.0},
    "slow-later": {"delay_ms": 10_000.0},
    "errors-later": {"errors": 0.7},
}
_CONCURRENCY: Final = 4
_SLOW_CONCURRENCY: Final = 16  # who waits computes nothing: more wait at once, and the demo takes no longer


def server_faults(breakage: Breakage | None, *, legacy_ttft_p95_ms: float | None) -> tuple[str, ...]:
    """Return the options of the target's server that make it worse; `cost` is a matter of its price.

    Args:
        breakage: What is to be worse.
        legacy_ttft_p95_ms: What the target's time to first token is compared with: on a slow machine a fixed delay
            could pass within the allowance.
    """
    delay_ms = _LEAST_DELAY_MS + _SLOW_TIMES * (legacy_ttft_p95_ms or 0.0)
    options: dict[Breakage | None, tuple[str, ...]] = {
        "regress": ("--fault-regress", "0.4"),  # of 0.25 the better trained target still kept 92 % of legacy
        "slow": ("--fault-delay-ms", f"{delay_ms:.0f}"),
        "errors": ("--fault-errors", "0.1"),
    }
    return options.get(breakage, ())


def later_fault(breakage: Breakage | None) -> Mapping[str, float]:
    """Return what the target's server is told once it has users; nothing where it does not turn bad then."""
    return _LATER.get(breakage, {})


def migration(
    *, url: str, adapted: bool, breakage: Breakage | None = None, legacy_url: str | None = None
) -> dict[str, Any]:
    """Return the content of the demo's migration file.

    Args:
        url: Where anven-nano is served.
        legacy_url: Where legacy-nano is served, for a file that says how both are served to users; None leaves it out.
        adapted: Look for prompts that the target takes better, or carry the legacy ones over unchanged.
        breakage: What is worse about the target, which its price shows where it is that; the prompts are then declared,
            as a search would spend minutes on a target that is refused anyway.
    """
    declared: dict[str, Any] = {
        "workload": "demo-adapted" if adapted else "demo-unchanged",
        "owner": "demo",
        "legacy": {"model": LEGACY, "logs": "calls-*.jsonl", "format": "litellm", "price": _LEGACY_PRICE},
        "target": {
            "engine": "endpoint",
            "model": TARGET,
            "url": url,
            "concurrency": _SLOW_CONCURRENCY if breakage == "slow" else _CONCURRENCY,
            "max_attempts": 2,
            "price": _TOO_DEAR if breakage == "cost" else _TARGET_PRICE,
        },
        "grading": [{"kind": "exact"}],
        # What the first verdict burns cannot judge the second: it takes few, as it is far from close.
        "golden": {"strata": ["application"], **_SMALL},
        "sign_off": {"quality_margin": 0.05, "waive": ["safety"]},
    }
    if not adapted:
        return declared
    if legacy_url is not None:
        declared["gateway"] = {"legacy": {"model": f"openai/{LEGACY}", "url": legacy_url}}
        declared["rollout"] = dict(_ROLLOUT)
    golden, prompt = (_SEARCHED, _SEARCH) if breakage is None else (_DECLARED, _WRITTEN | {"rewrites": rewrites()})
    return {**declared, "golden": {**declared["golden"], **golden}, "prompt": dict(prompt)}


def rewrites() -> list[dict[str, Any]]:
    """Return how each legacy prompt is written in the short style that anven-nano was trained on."""
    without_context = LEGACY_PATTERN.replace("(?P<context>.*?)", "")
    return [
        {
            "system": sign,
            "user": LEGACY_PATTERN if "{context}" in ANVEN_USER[task] else without_context,
            "messages": [
                {"role": "system", "content": ANVEN_SYSTEM[task]},
                {"role": "user", "content": ANVEN_USER[task]},
            ],
        }
        for task, sign in _LEGACY_SIGNS.items()
    ]
