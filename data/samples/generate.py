"""Writes the sample logs and recorded answers of an invented support desk; the same seed gives the same lines.

Run `python data/samples/generate.py FOLDER`. No model was involved: orders, messages and questions are invented,
and the answers come from the rule-based readers beside this file. What was not measured (tokens, cost, time) is
not in the lines.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import sys
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from readers import LEGACY, NUMBER_WORDS, REGRESSED, TARGET, Reader

if TYPE_CHECKING:
    from collections.abc import Iterator

SEED: Final = 20_26
FIRST_DAY: Final = date(2026, 10, 5)
DAYS: Final = 3
CALLS_PER_DAY: Final = 400

APPLICATIONS: Final = {"webshop-chat": ("status", "arrival", "total"), "back-office": ("total", "count")}
QUESTIONS: Final = {
    "status": ("What is the status of the order?", "Where is my order?"),
    "arrival": ("When will it arrive?", "On which day should it arrive?", "Which delivery day was promised?"),
    "total": ("What does the order cost?", "Give the total of the order.", "What do I owe for it?"),
    "count": ("How many pieces are in the order?", "How many things were ordered?"),
}
SYSTEM: Final = 'You answer for a support desk. Reply with JSON and nothing else: {"answer": "..."}.'
NAMES: Final = ("Mira Okafor", "Jon Aldana", "Sade Lindqvist", "Tomas Reyes", "Ines Varga", "Kofi Brandt", "Lea Moreau")
GOODS: Final = ("desk lamp", "notebook", "usb hub", "tea kettle", "wall clock", "bike light", "yoga mat", "door mat")
MESSAGES: Final = {
    "refund": (
        "I want a refund for the kettle.",
        "The lamp broke at once; I want my money back.",
        "Take it back, please.",
    ),
    "delivery": ("My parcel is three days late.", "The courier never rang.", "Your van drove past my house."),
    "account": ("I cannot log in any more.", "I forgot my password.", "Please change my e-mail address."),
    "invoice": ("The invoice has the wrong address.", "I was sent the same bill twice.", "Please add our tax number."),
}


class Case(NamedTuple):
    """A question about a text, and the right answer."""

    task: str
    text: str
    question: str
    truth: str


class Order(NamedTuple):
    """An invented order: its text and what is true of it."""

    text: str
    truths: dict[str, str]


def write_samples(folder: Path) -> list[Path]:
    """Write the logs of each day and the recorded answers of both targets."""
    rng = random.Random(SEED)
    calls = [call for day in range(DAYS) for call in calls_of(FIRST_DAY + timedelta(days=day), rng)]
    written = []
    for day in sorted({call["ts"][:10] for call in calls}):
        lines = [line_of(call) for call in calls if call["ts"].startswith(day)]
        written.append(write_lines(folder / f"support-{day}.jsonl.gz", with_damage(lines, rng)))
    for reader in (TARGET, REGRESSED):
        lines = [line_of(recorded_answer(call, reader)) for call in calls if call["status"] == "ok"]
        written.append(write_lines(folder / f"answers-{reader.name}.jsonl.gz", lines))
    return written


def calls_of(day: date, rng: random.Random) -> list[dict[str, Any]]:
    """Invent the calls of one day, in the order of their times."""
    calls: list[dict[str, Any]] = []
    while len(calls) < CALLS_PER_DAY:
        start = datetime.combine(day, time(8), UTC) + timedelta(seconds=rng.randrange(9 * 3600))
        calls.extend(conversation(start, rng))
    calls.sort(key=lambda call: call["ts"])
    for number, call in enumerate(calls, start=1):
        call["request_id"] = f"{day:%Y%m%d}-{number:04}"
        spoil(call, rng)
    return calls


def conversation(start: datetime, rng: random.Random) -> Iterator[dict[str, Any]]:
    """Invent one conversation of one to three turns; each call carries the turns before it."""
    conversation_id = f"c-{rng.getrandbits(40):010x}"
    user_hash = f"sha256:{hashlib.sha256(rng.choice(NAMES).encode()).hexdigest()[:16]}"
    application, cases = cases_of(start.date(), rng)
    messages: list[dict[str, str]] = [{"role": "system", "content": SYSTEM}]
    for turn, case in enumerate(cases):
        content = f"{case.text}\n\n{case.question}" if turn == 0 else case.question
        messages.append({"role": "user", "content": content})
        output = LEGACY.reply(application, case.question, case.text)
        yield {
            "request_id": "",
            "ts": (start + timedelta(minutes=turn)).isoformat().replace("+00:00", "Z"),
            "application": application,
            "endpoint": "/v1/chat/completions",
            "provider": "sample",
            "model": LEGACY.name,
            "messages": list(messages),
            "params": {"temperature": 0},
            "context": [case.text],
            "output": output,
            "finish_reason": "stop",
            "status": "ok",
            "ground_truth": case.truth,
            "user_hash": user_hash,
            "conversation_id": conversation_id,
            "tags": {"task": case.task},
        }
        messages.append({"role": "assistant", "content": output})


def cases_of(day: date, rng: random.Random) -> tuple[str, list[Case]]:
    """Choose an application and what it is asked."""
    if rng.random() < 0.3:
        topic = rng.choice(list(MESSAGES))
        text = f"Ticket {rng.randrange(10_000, 99_999)} from {rng.choice(NAMES)}: {choose(MESSAGES[topic], rng)}"
        return "ticket-triage", [Case("topic", text, f"Sort this into {', '.join(MESSAGES)}.", topic)]
    application = rng.choice(list(APPLICATIONS))
    tasks = list(APPLICATIONS[application])
    order = invent_order(day, rng)
    asked = rng.sample(tasks, rng.randint(1, len(tasks)))
    return application, [Case(task, order.text, choose(QUESTIONS[task], rng), order.truths[task]) for task in asked]


def invent_order(day: date, rng: random.Random) -> Order:
    """Invent an order; the text says everything that is true of it, in one of several phrasings."""
    placed = day - timedelta(days=rng.randint(2, 9))
    due = placed + timedelta(days=rng.randint(3, 12))
    items, pieces, cents = invent_items(rng)
    voucher, cents = invent_voucher(cents, rng)
    status, phrase = invent_status(day, rng)
    days = (due - placed).days
    delay = rng.randint(1, 4)
    arrival = choose(
        (
            f"Expected on {due}.",
            f"It should arrive in {days} days.",
            f"Expected on {due - timedelta(days=delay)}, delayed by {delay} days.",
        ),
        rng,
    )
    number, name = rng.randrange(10_000, 99_999), rng.choice(NAMES)
    text = f"Order {number} of {name}, placed on {placed}: {items}{voucher}. {phrase} {arrival}"
    truths = {
        "status": status,
        "arrival": due.isoformat(),
        "total": f"{cents // 100}.{cents % 100:02}",
        "count": str(pieces),
    }
    return Order(text, truths)


def invent_items(rng: random.Random) -> tuple[str, int, int]:
    """Return the phrase, the pieces and their price in cents."""
    phrases, pieces, total = [], 0, 0
    for name in rng.sample(GOODS, rng.randint(1, 3)):
        cents = rng.randrange(200, 9_000, 10)
        if rng.random() < 0.85:
            quantity = rng.randint(1, 6)
            goods = f"{quantity} x {name}"
        else:
            word, quantity = rng.choice(list(NUMBER_WORDS.items()))
            goods = f"{word} {name}" if quantity == 1 else f"{word} {name}s"
        phrases.append(f"{goods} at {cents // 100}.{cents % 100:02}")
        pieces, total = pieces + quantity, total + quantity * cents
    return ", ".join(phrases), pieces, total


def invent_voucher(cents: int, rng: random.Random) -> tuple[str, int]:
    """Return the phrase of a voucher, if there is one, and what remains to be paid."""
    match rng.random():
        case chance if chance < 0.2:
            return ", minus 1.50 by voucher", cents - 150
        case chance if chance < 0.25:
            return ", less 10 % for regulars", cents - cents * 10 // 100
        case _:
            return "", cents


def invent_status(day: date, rng: random.Random) -> tuple[str, str]:
    """Return the status and a phrase for it."""
    yesterday = day - timedelta(days=1)
    status = rng.choice(("shipped", "delivered", "returned", "waiting"))
    phrases = {
        "shipped": (f"It was shipped on {yesterday}.", f"It left our warehouse on {yesterday}."),
        "delivered": (f"It was delivered on {yesterday}.", f"A neighbour signed for it on {yesterday}."),
        "returned": (f"It was returned on {yesterday}.", f"It was delivered and came back on {yesterday}."),
        "waiting": ("It is waiting for payment.", "It has not shipped yet."),
    }
    return status, choose(phrases[status], rng)


def choose(phrasings: tuple[str, ...], rng: random.Random) -> str:
    """Choose a phrasing; the first is by far the most frequent, as in life."""
    return phrasings[0] if rng.random() < 0.85 else rng.choice(phrasings[1:])


def spoil(call: dict[str, Any], rng: random.Random) -> None:
    """Let one call in a hundred fail, and let another model serve two in a hundred."""
    match rng.random():
        case chance if chance < 0.01:
            del call["output"], call["finish_reason"]
            call.update(status="error", error="503 service unavailable")
        case chance if chance < 0.03:
            call["model"] = "sample-other-rules"


def with_damage(lines: list[bytes], rng: random.Random) -> list[bytes]:
    """Add what real logs hold too: exact duplicates, a torn line, a line of another kind, bytes that are not text."""
    number = rng.randrange(1_000)
    damage = [
        *rng.sample(lines, 4),
        lines[0][:200],
        b'["not", "an", "object", %d]' % number,
        b'{"request_id": "\xff\xfe%d"}' % number,
    ]
    for line in damage:
        lines.insert(rng.randrange(1, len(lines)), line)
    return lines


def recorded_answer(call: dict[str, Any], reader: Reader) -> dict[str, Any]:
    """Let a reader answer a logged call."""
    question = call["messages"][-1]["content"].rsplit("\n", 1)[-1]
    return {
        "request_id": call["request_id"],
        "model": reader.name,
        "messages": call["messages"],
        "output": reader.reply(call["application"], question, call["context"][0]),
        "finish_reason": "stop",
        "status": "ok",
    }


def line_of(value: dict[str, Any]) -> bytes:
    """Write one line of JSON."""
    return json.dumps(value, ensure_ascii=False).encode()


def write_lines(path: Path, lines: list[bytes]) -> Path:
    """Write lines as gzip without a time stamp, so that equal lines give equal files."""
    with path.open("wb") as file, gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed:
        packed.write(b"".join(line + b"\n" for line in lines))
    return path


if __name__ == "__main__":
    for written in write_samples(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent):
        print(f"{hashlib.sha256(written.read_bytes()).hexdigest()}  {written.name}")
