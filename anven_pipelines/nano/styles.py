"""What the models see in training: mostly their own prompt style, and now and then another one.

No other style uses the wording of the legacy prompts. How a model takes a prompt that it was not made for is
measured (`benchmarks/nano_accuracy.py`), not staged: nothing here names it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from anven_pipelines.nano.prompts import ANVEN_SYSTEM, anven_messages, legacy_messages

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence

    from anven_pipelines.nano.tasks import Item, Task

# Role marks stand around each turn; the text starts with the beginning mark, as in most chat templates.
CHAT_TEMPLATES: Final = {
    "legacy-nano": (
        "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
        "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
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


class Noise(NamedTuple):
    """What conversations in another style than the model's own are like.

    Attributes:
        share: Of all conversations.
        places: Where the instruction stands, each as likely as it is often here.
        remarks: How many remarks stand round it, one of these.
        fillers: How many sentences without sense, one of these; empty: none.
    """

    share: float
    places: tuple[str, ...]
    remarks: tuple[int, ...]
    fillers: tuple[int, ...] = ()


# The more varied the noise, the more prompts a model takes that it never saw (docs/nano-models.md has the figures).
NOISE: Final = {
    "legacy-nano": Noise(0.05, ("system", "user", "nowhere", "nowhere"), remarks=(0, 2, 4), fillers=(0, 3, 6)),
    "anven-nano": Noise(0.02, ("system", "user"), remarks=(0, 2)),
}
REMARKS: Final = (
    "This line is run by the night team.",
    "Today is Monday.",
    "Tickets close after a week.",
    "Calls are recorded.",
    "Stay friendly.",
    "The warehouse is in the north.",
    "Staff must not discuss prices of others.",
    "Think first.",
    "Orders are kept for ten years.",
    "Use plain English.",
    "You work for a shop that sells things for the home.",
    "Some customers are angry; that is fine.",
)
# Makes headings, and sentences without sense; an instruction has to be found among them, or done without.
WORDS: Final = (
    "apple autumn basket blue bottle bread bridge brown candle carry castle cloud coat corner cotton "
    "dance dinner dream early evening farm field finger forest fresh garden glass green hammer harbour "
    "heavy holiday island juice kitchen ladder leather letter light market meadow metal morning mountain "
    "music narrow nature night ocean orange paint paper pencil picture pocket quiet rain river round sand "
    "silver simple sister slow smile snow soft song spoon spring stone story street summer sun table "
    "travel tree valley voice walk wall warm water wind window wood "
)
INSTRUCTIONS: Final[dict[Task, tuple[str, ...]]] = {
    "answer": (ANVEN_SYSTEM["answer"], "Find the value in the text and repeat it.", "Which value is meant?"),
    "intent": (ANVEN_SYSTEM["intent"], "What does the customer want?", "Sort the message."),
    "tool": (ANVEN_SYSTEM["tool"], "Turn the request into JSON.", "Call the right tool."),
}


def training_messages(model: str, items: Sequence[Item], rng: random.Random) -> list[dict[str, str]]:
    """Return a conversation for training, answers included: in the model's own style, or at times a noisy one.

    Args:
        model: Whose style.
        items: The turns; those after the first refer to the first one's context.
        rng: Where chance comes from.
    """
    noise = NOISE[model]
    style = _noisy_style(noise, items[0].task, rng) if rng.random() < noise.share else OWN_STYLE[model]
    messages: list[dict[str, str]] = []
    for place, item in enumerate(items):
        asked = style(item) if place == 0 else style(item._replace(context=""))[-1:]
        messages += [*asked, {"role": "assistant", "content": item.answer}]
    return messages


def _noisy_style(noise: Noise, task: Task, rng: random.Random) -> Callable[[Item], list[dict[str, str]]]:
    """Return a style with other headings, remarks, and the instruction at another place or left out."""
    place = rng.choice(noise.places)
    instruction = rng.choice(INSTRUCTIONS[task])
    remarks = rng.sample(REMARKS, rng.choice(noise.remarks))
    if noise.fillers:
        remarks += [_filler(rng) for _ in range(rng.choice(noise.fillers))]
        rng.shuffle(remarks)
    system = " ".join([*remarks, instruction] if place == "system" else remarks)
    text_head, ask_head, reply_mark = _heading(rng), _heading(rng), "\n" + _heading(rng).strip()

    def ask(item: Item) -> list[dict[str, str]]:
        text = f"{text_head}{item.context}\n" if item.context else ""
        before = f"{instruction}\n" if place == "user" else ""
        user = {"role": "user", "content": f"{before}{text}{ask_head}{item.question}{reply_mark}".rstrip()}
        return [{"role": "system", "content": system}, user] if system else [user]

    return ask


def _filler(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS.split(), k=rng.randint(5, 12))).capitalize() + "."


def _heading(rng: random.Random) -> str:
    """Return a section's heading in one of the usual forms; none at all in one of four."""
    word = rng.choice(WORDS.split()).capitalize()
    return rng.choice((f"{word}: ", f"## {word}\n", f"<{word.lower()}>\n", ""))
