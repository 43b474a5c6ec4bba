"""What mined text is called: names of slots, texts that part two templates, system texts that are one, policies."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Final

import regex  # type: ignore[import-untyped] # for letters of every script

from anven_pipelines.domain.prompt_anchors import ROBUST_SHARE, shared_text
from anven_pipelines.domain.prompt_template import SLOT, unchanged

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from anven_pipelines.domain.prompt_template import PromptTemplate

SPLIT_SHARE: Final = 0.2  # of the prompts that a template of its own must have
LEAST_SPLIT: Final = 5
LONG_LINE_WORDS: Final = 4
NEAR_SHARE: Final = 0.9  # of the words of two system texts, where they are one with slots
NEAR_TEXT: Final = 0.7  # of a system text's characters that stand in all of its family
MOST_FAMILIES: Final = 50

_LABEL: Final = regex.compile(r"([\p{L}\p{N}][\p{L}\p{N} _-]{0,40})[*_\"']*\s*[:\uff1a][*_]*\s*[\"']?\Z")
_HEADING: Final = regex.compile(r"(?:^|\n)#+ *([^\n]+?):?\s*\n\s*\Z")
_TAG: Final = regex.compile(r"<([\p{L}][\w-]*)[^<>]*>\s*\Z")
_FEATURE: Final = regex.compile(r"(?m)^(?:<\p{L}[\w-]*>|#+ [^\n]+|\p{L}[^\n:.?!]{0,40}:)")
_NUMBER: Final = regex.compile(
    r"\d+|\b(?:January|February|March|April|May|June|July|August|September|October|November|December"
    r"|Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday)\b"
)
_FORM: Final = regex.compile(r"#+ .*|</?[^<>]+>|[^\n.!?]{0,41}[:\uff1a][*_\"' ]*")
_WORD: Final = regex.compile(r"\w+")
_SENTENCE: Final = regex.compile(r"(?<=[.!?])\s+|\n+")
# English; of other languages nothing is proposed.
_POLICY: Final = regex.compile(
    r"(?i)\b(?:must|never|always|do not|don't|may not|cannot|not allowed|under no circumstances|forbidden|prohibited"
    r"|refuse|confidential|comply|complies|policy|policies|private data|personal data)\b"
)
# Words of no other language that prompts are written in: "a", "an", "is", "of", "to", "by" and "for" are Hungarian,
# Portuguese, German, Dutch, Polish or Danish too.
_ENGLISH: Final = regex.compile(
    r"the|this|that|these|those|what|which|where|when|why|you|your|their|with|from|into|about|between|and|not|if|each"
    r"|only|should|given|using|return|reply|write"
)
_ENGLISH_SHARE: Final = 0.1  # of the words; English instructions mostly have a fifth, of 25 others at most 0.04
_TOLD_LETTERS: Final = 40  # fewer show no language
_TOLD_BEYOND_LATIN: Final = 10  # letters of another script; these are not English however few
_BEYOND_LATIN: Final = regex.compile(r"(?V1)[\p{L}--\p{Latin}]")
# A letter of a script without spaces counts as a word, else one English line outweighs all sentences around it.
_READ: Final = regex.compile(
    r"(?V1)[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
    r"|[\w--\p{Han}--\p{Hiragana}--\p{Katakana}--\p{Thai}--\p{Lao}--\p{Khmer}--\p{Myanmar}]+"
)
NAME_WORDS: Final = 3


def written(literals: Sequence[str], taken: Collection[str]) -> tuple[str, tuple[str, ...]]:
    """Write shared text as a template: each slot is named after the label before it, else `slot_1` and so on.

    Args:
        literals: Texts around the slots.
        taken: Names that must not be given: those of other slots, and words that stand in braces as text.
    """
    names: list[str] = []
    text = literals[0]
    for number, literal in enumerate(literals[1:], start=1):
        base = _label_of(text) or f"slot_{number}"
        name, count = base, 1
        while name in taken or name in names:
            count += 1
            name = f"{base}_{count}"
        names.append(name)
        text += f"{{{name}}}{literal}"
    return text, tuple(names)


def _label_of(text: str) -> str | None:
    """Return the label, tag or heading on which a text ends, as a name."""
    for pattern in (_LABEL, _TAG, _HEADING):
        if found := pattern.search(text[-200:]):
            words = _WORD.findall(found[1].lower())
            # A longer label is an instruction; names are those that a slot's pattern knows.
            if len(words) <= NAME_WORDS and regex.fullmatch(r"[A-Za-z_]\w*", name := "_".join(words)):
                return str(name)
    return None


def feature_to_split(texts: Sequence[str], literals: Sequence[str]) -> str | None:
    """Return a text that parts two templates which share nothing, or no beginning; None where there is one template.

    Labels, tags and headings at a line's start and long lines tell templates apart; first words of questions do not.
    """
    if literals[0]:
        return None
    counts = Counter(feature for text in texts for feature in _features(text, whole=not any(literals)))
    most, least = ROBUST_SHARE * len(texts), max(LEAST_SPLIT, SPLIT_SHARE * len(texts))
    fitting = {feature: sum(feature in text for text in texts) for feature, count in counts.items() if count >= least}
    ranked = sorted((-count, feature) for feature, count in fitting.items() if count < most)
    return ranked[0][1] if ranked else None


def _features(text: str, *, whole: bool) -> set[str]:
    looked_at = text if whole else text.split("\n", 1)[0]
    lines = {line for line in looked_at.split("\n") if len(_WORD.findall(line)) >= LONG_LINE_WORDS}
    return {each for each in _FEATURE.findall(looked_at) if each} | lines


def near_equal(systems: Mapping[str, int], *, least_calls: int) -> dict[str, str]:
    """Map each system text to the first of its family.

    Texts that differ in dates, numbers or a few words are one, unless too little is left in common. So are texts of
    which each has fewer calls than a template needs, such as those that carry retrieved passages, where they share a
    sentence; what fewer than all of them share is for the templates to tell.

    Args:
        systems: Each text, and the number of calls that have it.
        least_calls: So many calls make a text stand for itself.
    """
    masked: dict[str, list[str]] = defaultdict(list)
    for text in sorted(systems):
        masked[_NUMBER.sub("0", text)].append(text)
    near: list[tuple[frozenset[str], list[str]]] = []
    for mask, texts in sorted(masked.items()):
        words = frozenset(_WORD.findall(mask))
        members = next((members for other, members in near[:MOST_FAMILIES] if _alike(words, other)), None)
        if members is None:
            near.append((words, list(texts)))
        else:
            members += texts
    families = [part for _, each in near for part in ([each] if _are_one(each) else [[text] for text in each])]
    rare = [each for each in families if sum(systems[text] for text in each) < least_calls]
    pool = [text for each in rare for text in each]
    if len(pool) >= LEAST_SPLIT and len(_WORD.findall(" ".join(shared_text(pool)))) >= LONG_LINE_WORDS:
        families = [each for each in families if each not in rare] + [pool]
    return {text: min(members) for members in families for text in members}


def _alike(one: frozenset[str], other: frozenset[str]) -> bool:
    return len(one & other) >= NEAR_SHARE * len(one | other)


def _are_one(texts: Sequence[str]) -> bool:
    return sum(map(len, shared_text(texts))) >= NEAR_TEXT * max(map(len, texts))


def policy_sentences(system: str) -> tuple[str, ...]:
    """Return the sentences that sound like policy or safety, each once, in their order, word for word."""
    sentences = (each.strip() for each in _SENTENCE.split(system))
    return tuple(dict.fromkeys(each for each in sentences if _POLICY.search(each)))


def proposed_policies(template: PromptTemplate) -> tuple[str, ...]:
    """Return the sentences of a template's system and user text that sound like policy, each once.

    Of the user text only whole sentences count: one with a slot, or a label, tag or heading, is the form around what a
    call fills in.
    """
    user = (
        each
        for each in policy_sentences(template.user)
        if not any(name in template.slots for name in SLOT.findall(each)) and not _FORM.fullmatch(each)
    )
    return tuple(dict.fromkeys([*policy_sentences(template.system or ""), *user]))


def unread_policies(template: PromptTemplate) -> str | None:
    """Say that a text is in a language that the rules for policies do not read; None where it reads them.

    Whoever rewrites it could drop a sentence of which nobody knows that it binds.
    """
    text = "\n".join(message.content for message in unchanged(template).messages).lower()
    words = _READ.findall(text)
    is_short = sum(map(len, words)) < _TOLD_LETTERS and len(_BEYOND_LATIN.findall(text)) < _TOLD_BEYOND_LATIN
    if template.policies or is_short or sum(map(bool, map(_ENGLISH.fullmatch, words))) >= _ENGLISH_SHARE * len(words):
        return None
    return (
        f"{template.name}: its text does not read like English, so no policy was found in it; list in prompt.policies "
        "what must stay word for word, or [] where nothing must"
    )
