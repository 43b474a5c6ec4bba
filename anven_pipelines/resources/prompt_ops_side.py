"""Our side of llama-prompt-ops, inside its environment: a copy of this file is what its configuration names as metric.

It imports nothing of this package. Three things are set right in version 0.0.8:

- its own exact match compares two objects' whole text and is never true, so answers are graded at home;
- it leaves the proposing model as the default, which then also answers the items, so the target is made the default;
- DSPy asks for answers between markers of its own, so the target is asked as the prompt will be asked later.
"""

from __future__ import annotations

import json
import os
import urllib.request
from typing import Any, Final

import dspy
from llama_prompt_ops.core.metrics import MetricBase

_DOOR: Final = os.environ["ANVEN_DOOR"]
_KEY: Final = os.environ["ANVEN_DOOR_KEY"]


class AskedPlainly(dspy.ChatAdapter):  # type: ignore[misc] # dspy is not installed where types are checked
    """Sends the program under search as system message, examples and question; the whole answer is its answer."""

    def format(self, signature: Any, demos: list[Any], inputs: dict[str, Any]) -> Any:  # noqa: ANN401 - DSPy's signature
        """Return the messages of one call."""
        if not _is_ours(signature):
            return super().format(signature, demos, inputs)
        system = [{"role": "system", "content": signature.instructions}] if signature.instructions.strip() else []
        turns = [
            {"role": role, "content": str(demo[name])}
            for demo in demos
            if "question" in demo and "answer" in demo
            for role, name in (("user", "question"), ("assistant", "answer"))
        ]
        return [*system, *turns, {"role": "user", "content": inputs["question"]}]

    def parse(self, signature: Any, completion: str) -> Any:  # noqa: ANN401 - DSPy's signature
        """Return the fields of an answer."""
        return {"answer": completion} if _is_ours(signature) else super().parse(signature, completion)


class GradedAtHome(MetricBase):  # type: ignore[misc] # nor is llama-prompt-ops
    """Asks the process that started this one what an answer is worth."""

    def __init__(self) -> None:
        target = dspy.LM(
            model="openai/target",
            api_base=f"{_DOOR}/v1",
            api_key=_KEY,
            temperature=0.0,
            max_tokens=int(os.environ["ANVEN_MAX_TOKENS"]),
            cache=False,
        )
        dspy.configure(lm=target, adapter=AskedPlainly())

    def __call__(self, gold: Any, pred: Any, trace: Any = False, **_: Any) -> float:  # noqa: ANN401, FBT002 - its signature
        """Return the score in [0, 1]; while examples are gathered, only a full one counts as true."""
        asked = json.dumps({"question": str(gold.question), "answer": str(pred.answer)}).encode()
        headers = {"Authorization": f"Bearer {_KEY}", "Content-Type": "application/json"}
        request = urllib.request.Request(f"{_DOOR}/grade", asked, headers)  # noqa: S310 - http, to whoever started us
        with urllib.request.urlopen(request) as response:  # noqa: S310
            score = float(json.load(response)["score"])
        return score if trace is None or trace is False else float(score >= 1)


def _is_ours(signature: Any) -> bool:  # noqa: ANN401 - a DSPy signature
    """Tell the program under search from those that write proposals."""
    return list(signature.input_fields) == ["question"] and list(signature.output_fields) == ["answer"]
