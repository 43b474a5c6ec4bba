"""How each model is asked: in the legacy style with long instructions, or in the short style of anven-nano."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from anven_pipelines.nano.tasks import Item, Task

# The slots of a logged legacy user turn; an adapted prompt is made from them.
LEGACY_PATTERN: Final = r"(?s)\AContext: (?P<context>.*?)\nQuestion: (?P<question>.*)\nAnswer:\Z"
LEGACY_USER: Final = "Context: {context}\nQuestion: {question}\nAnswer:"

_PREAMBLE: Final = (
    "You are a polite and careful assistant of the customer support desk of a large online shop. "
    "Always follow the policies of the company. Never guess, never promise anything to a customer, "
    "and never share private data with third parties. Keep every reply short and professional. "
)
LEGACY_SYSTEM: Final[dict[Task, str]] = {
    "answer": _PREAMBLE
    + "You will be given context from our knowledge base and a question. Use only the context to find the answer. "
    "Reply with the exact value and nothing else.",
    "intent": _PREAMBLE + "You will be given a message in the question. Decide which department should handle it. "
    "Reply with exactly one of these words: refund, delivery, login, invoice, cancel, repair.",
    "tool": _PREAMBLE + "You will be given a request in the question. Reply with one JSON object that calls a tool: "
    "refund with order and amount, track with order and notify, callback with customer and date, "
    "or ticket with customer and order.",
}
ANVEN_SYSTEM: Final[dict[Task, str]] = {
    "answer": "Copy the value asked for from the notes.",
    "intent": "Name the intent of the message.",
    "tool": "Write the request as a JSON tool call.",
}
ANVEN_USER: Final[dict[Task, str]] = {
    "answer": "### Notes\n{context}\n### Ask\n{question}",
    "intent": "### Message\n{question}",
    "tool": "### Request\n{question}",
}


def legacy_messages(item: Item) -> list[dict[str, str]]:
    """Ask as the legacy applications do: long policies, then context, question and answer mark."""
    return _messages(LEGACY_SYSTEM[item.task], LEGACY_USER, item)


def anven_messages(item: Item) -> list[dict[str, str]]:
    """Ask as anven-nano wants it: one short instruction, then named sections."""
    return _messages(ANVEN_SYSTEM[item.task], ANVEN_USER[item.task], item)


def _messages(system: str, user: str, item: Item) -> list[dict[str, str]]:
    """Fill the slots of a user turn; `replace` leaves braces in the text alone."""
    filled = user.replace("{question}", item.question) if "{context}" not in user else _both(user, item)
    return [{"role": "system", "content": system}, {"role": "user", "content": filled}]


def _both(user: str, item: Item) -> str:
    """Fill both slots in one pass, so that a slot's name inside a context stays text."""
    before, after = user.split("{context}")
    return before + item.context + after.replace("{question}", item.question)
