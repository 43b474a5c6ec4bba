"""Rule-based readers of the invented support desk: small programs that read a text and answer a question.

Each knows some phrasings and not others, so each errs where its rules end. None of them sees the right answer.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from typing import Final

UNKNOWN: Final = "unknown"
NUMBER_WORDS: Final = {"a": 1, "two": 2, "a pair of": 2, "three": 3, "four": 4, "five": 5}

_ITEM: Final = re.compile(r"(\d+) x [a-z -]+? at (\d+)\.(\d\d)|\b(a pair of|[a-z]+) [a-z -]+? at (\d+)\.(\d\d)")
_PLACED: Final = re.compile(r"placed on (\d{4}-\d\d-\d\d)")
_EXPECTED: Final = re.compile(r"expected on (\d{4}-\d\d-\d\d)", re.IGNORECASE)
_IN_DAYS: Final = re.compile(r"arrive in (\d+) days")
_DELAY: Final = re.compile(r"delayed by (\d+) days")
_VOUCHERS: Final = {"minus": re.compile(r"minus (\d+)\.(\d\d)"), "percent": re.compile(r"less (\d+) %")}


@dataclass(frozen=True)
class Reader:
    """A set of rules: what this reader knows how to read."""

    name: str
    numbers: frozenset[str]
    vouchers: frozenset[str]
    dates: frozenset[str]
    questions: dict[str, str]
    statuses: dict[str, str]
    topics: dict[str, str]
    fenced: frozenset[str] = field(default_factory=frozenset)

    def reply(self, application: str, question: str, text: str) -> str:
        """Answer in JSON, in a code fence for the applications in `fenced`."""
        answer = json.dumps({"answer": self.answer(question, text)})
        return f"```json\n{answer}\n```" if application in self.fenced else answer

    def answer(self, question: str, text: str) -> str:
        """Answer a question about an order, or sort a message."""
        match _first(self.questions, question):
            case "total":
                return self._total(text)
            case "count":
                return str(sum(quantity for quantity, _ in self._items(text)))
            case "arrival":
                return self._arrival(text)
            case "status":
                return _first(self.statuses, text)
            case "topic":
                return _first(self.topics, text)
            case _:
                return UNKNOWN

    def _items(self, text: str) -> list[tuple[int, int]]:
        """Return quantity and price in cents of each item; a number word this reader does not know counts as one."""
        return [
            (int(digits), int(euros + cents))
            if digits
            else (NUMBER_WORDS[word] if word in self.numbers else 1, int(word_euros + word_cents))
            for digits, euros, cents, word, word_euros, word_cents in _ITEM.findall(text)
        ]

    def _total(self, text: str) -> str:
        total = sum(quantity * cents for quantity, cents in self._items(text))
        if "minus" in self.vouchers and (minus := _VOUCHERS["minus"].search(text)):
            total -= int(minus[1] + minus[2])
        if "percent" in self.vouchers and (percent := _VOUCHERS["percent"].search(text)):
            total -= total * int(percent[1]) // 100
        return f"{total // 100}.{total % 100:02}"

    def _arrival(self, text: str) -> str:
        if expected := _EXPECTED.search(text):
            day = date.fromisoformat(expected[1])
        elif "in days" in self.dates and (days := _IN_DAYS.search(text)) and (placed := _PLACED.search(text)):
            day = date.fromisoformat(placed[1]) + timedelta(days=int(days[1]))
        else:
            return UNKNOWN
        if "delay" in self.dates and (delay := _DELAY.search(text)):
            day += timedelta(days=int(delay[1]))
        return day.isoformat()


def _first(rules: dict[str, str], text: str) -> str:
    """Return what the first rule that matches stands for."""
    return next((meaning for pattern, meaning in rules.items() if re.search(pattern, text, re.IGNORECASE)), UNKNOWN)


LEGACY: Final = Reader(
    name="sample-legacy-rules",
    numbers=frozenset({"a", "two", "three", "four"}),
    vouchers=frozenset({"minus"}),
    dates=frozenset({"delay"}),
    questions={
        "cost|total|owe": "total",
        "how many": "count",
        "arrive|delivery day": "arrival",
        "status|where is": "status",
        "sort": "topic",
    },
    statuses={
        "returned|came back": "returned",
        "delivered|signed for": "delivered",
        "left our warehouse|shipped": "shipped",
        "waiting": "waiting",
    },
    topics={
        "refund|money back": "refund",
        "parcel|courier": "delivery",
        "password|log in": "account",
        "invoice": "invoice",
    },
)

TARGET: Final = Reader(
    name="sample-target-rules",
    numbers=frozenset({"a", "two", "three", "four", "five"}),
    vouchers=frozenset({"minus"}),
    dates=frozenset({"in days"}),
    questions={
        "cost|total|owe": "total",
        "how many": "count",
        "arrive|delivery day": "arrival",
        "status|where is": "status",
        "sort": "topic",
    },
    statuses={
        "not shipped|waiting": "waiting",
        "delivered": "delivered",
        "returned": "returned",
        "left our warehouse|shipped": "shipped",
    },
    topics={
        "money|refund": "refund",
        "courier|parcel|van": "delivery",
        "log in|e-mail address": "account",
        "bill|invoice": "invoice",
    },
    fenced=frozenset({"webshop-chat"}),
)

REGRESSED: Final = replace(
    TARGET,
    name="sample-regressed-rules",
    numbers=frozenset({"a"}),
    vouchers=frozenset(),
    statuses={"shipped|left our warehouse": "shipped", "delivered": "delivered", "waiting": "waiting"},
)
