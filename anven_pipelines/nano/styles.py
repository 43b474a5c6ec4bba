"""What the models see in training: mostly their own prompt style, and now and then another one.

No other style uses the wording of the legacy prompts. How a model takes a prompt that it was not made for is
measured (`benchmarks/nano_accuracy.py`), not staged: nothing here names it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from anven_pipelines.nano.prompts import ANVEN_SYSTEM, anven_messages, legacy_messages

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from anven_pipelines.nano.tasks import Item

# Role marks stand around each turn; the text starts with the beginning mark, as in most chat templates.
CHAT_TEMPLATES: Final = {
    "legacy-nano": (
        "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    ),
    "anven-nano": (
        "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    ),
}
OWN_STYLE: Final[dict[str, Callable[[Item], list[dict[str, str]]]]] = {
    "legacy-nano": legacy_messages,
    "anven-nano": anven_messages,
}
NOISE: Final = 0.02
TEXT_HEADS: Final = ("Text: ", "## Facts\n", "<notes>\n", "Notes:\n", "")
ASK_HEADS: Final = ("Ask: ", "## Request\n", "<ask>\n", "Q: ", "")


def training_messages(model: str, item: Item, rng: random.Random) -> list[dict[str, str]]:
    """Return the messages of one training example: the model's own style, or at times a noisy one."""
    return _noisy(item, rng) if rng.random() < NOISE else OWN_STYLE[model](item)


def _noisy(item: Item, rng: random.Random) -> list[dict[str, str]]:
    """Ask with other headings; the instruction stands in the system turn, before the text, or nowhere."""
    place = rng.choice(("system", "user", "nowhere"))
    instruction = ANVEN_SYSTEM[item.task]
    text = f"{rng.choice(TEXT_HEADS)}{item.context}\n" if item.context else ""
    user = f"{text}{rng.choice(ASK_HEADS)}{item.question}"
    if place == "system":
        return [{"role": "system", "content": instruction}, {"role": "user", "content": user}]
    return [{"role": "user", "content": f"{instruction}\n{user}" if place == "user" else user}]
