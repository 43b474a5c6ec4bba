"""Text from tokens: stop texts across token borders, half characters, the end of a JSON object."""

from __future__ import annotations

import json
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from tokenizers.pre_tokenizers import ByteLevel

from anven_pipelines.worker.text_stream import TextStream

# One token per byte: every character beyond ASCII, and every longer stop text, spans several tokens.
ALPHABET: Final = sorted(ByteLevel.alphabet())
BYTES: Final = Tokenizer(models.BPE(vocab={sign: place for place, sign in enumerate(ALPHABET)}, merges=[]))
BYTES.pre_tokenizer = ByteLevel(add_prefix_space=False)
BYTES.decoder = decoders.ByteLevel()


def pieces(text: str, *, stop: tuple[str, ...] = (), ends_with_json: bool = False) -> list[str]:
    """Send a text through a stream, token by token, and return what was released each time."""
    stream = TextStream(BYTES, stop=stop, ends_with_json=ends_with_json)
    released = []
    for token_id in BYTES.encode(text, add_special_tokens=False).ids:
        released.append(stream.add(token_id))
        if stream.ended:
            return released
    return [*released, stream.finish()]


@given(st.text(max_size=30))
def test_the_pieces_make_up_the_text(text: str) -> None:
    assert "".join(pieces(text)) == text


@given(st.text("ab{}é😀", max_size=30), st.lists(st.text("ab{é😀", min_size=1, max_size=4), min_size=1, max_size=3))
def test_the_text_ends_before_the_first_stop_text(text: str, stop: list[str]) -> None:
    cut = min((place for one in stop if (place := text.find(one)) >= 0), default=len(text))
    released = pieces(text, stop=tuple(stop))
    assert "".join(released).startswith(text[: max(0, cut - max(map(len, stop)))])
    assert not any(one in "".join(released) for one in stop)
    assert text.startswith("".join(released))


@given(st.text("ab", max_size=30), st.text("ab", min_size=1, max_size=4))
def test_one_stop_text_cuts_exactly(text: str, stop: str) -> None:
    assert "".join(pieces(text, stop=(stop,))) == text.partition(stop)[0]


def test_text_is_held_back_only_while_it_may_become_a_stop_text() -> None:
    assert pieces("xENy", stop=("END",)) == ["x", "", "", "ENy", ""]


def test_a_character_comes_when_its_last_byte_does() -> None:
    assert pieces("aé") == ["a", "", "é", ""]


def test_half_a_character_at_the_end_is_shown_as_one() -> None:
    stream = TextStream(BYTES, stop=())
    half = BYTES.encode("é", add_special_tokens=False).ids[0]
    assert (stream.add(half), stream.finish()) == ("", "\ufffd")


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ('{"a": {"b": "}"}} and more', '{"a": {"b": "}"}}'),
        (' \n{"a": 1}{"b": 2}', ' \n{"a": 1}'),
        ('{"a": 1', '{"a": 1'),
        ("{a}} b", "{a}} b"),
        ('[{"a": 1}] b', '[{"a": 1}] b'),
    ],
)
def test_an_answer_in_json_mode_ends_with_its_object(text: str, kept: str) -> None:
    assert "".join(pieces(text, ends_with_json=True)) == kept


@given(st.dictionaries(st.text(max_size=3), st.text("{}\"'ab", max_size=5), max_size=3))
def test_any_json_object_comes_whole(value: dict[str, str]) -> None:
    assert json.loads("".join(pieces(json.dumps(value) + "}}", ends_with_json=True))) == value
