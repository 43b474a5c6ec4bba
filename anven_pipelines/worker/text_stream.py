"""From token ids to text, as the tokens come: half characters, stop texts across token borders, the end of JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tokenizers.decoders import DecodeStream

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class TextStream:
    """The text of one answer; what may still become part of a stop text is held back.

    Attributes:
        ended: The text is complete: a stop text came up, or the JSON object closed.
    """

    def __init__(self, tokenizer: Tokenizer, *, stop: tuple[str, ...], ends_with_json: bool = False) -> None:
        """Begin an empty text.

        Args:
            tokenizer: Decodes the tokens.
            stop: Texts that end the answer and are cut off.
            ends_with_json: End the answer where its JSON object closes.
        """
        self.ended = False
        self._tokenizer = tokenizer
        self._stop = stop
        self._ends_with_json = ends_with_json
        self._decoder = DecodeStream(skip_special_tokens=True)
        self._token_ids: list[int] = []
        self._decoded = ""
        self._released = 0

    def add(self, token_id: int) -> str:
        """Take a token and return the text that is now certain."""
        self._token_ids.append(token_id)
        if new := self._decoder.step(self._tokenizer, token_id):
            self._append(new)
        return self._release(len(self._decoded) if self.ended else len(self._decoded) - self._may_become_stop())

    def finish(self) -> str:
        """Return the rest when no token follows, with U+FFFD for half a character."""
        if not self.ended:
            whole = self._tokenizer.decode(self._token_ids, skip_special_tokens=True)
            self._append(whole[len(self._decoded) :])
        return self._release(len(self._decoded))

    def _append(self, new: str) -> None:
        before = len(self._decoded)
        self._decoded += new
        found = [place for stop in self._stop if (place := self._decoded.find(stop, max(0, before - len(stop)))) >= 0]
        if found:
            self._end_at(min(found))
        elif self._ends_with_json and "}" in new and (end := _end_of_object(self._decoded)):
            self._end_at(end)

    def _end_at(self, place: int) -> None:
        self._decoded = self._decoded[:place]
        self.ended = True

    def _may_become_stop(self) -> int:
        """Return the length of the longest end of the text that is the beginning of a stop text."""
        longest = max(map(len, self._stop), default=1) - 1
        return next(
            (
                length
                for length in range(min(longest, len(self._decoded)), 0, -1)
                if any(stop.startswith(self._decoded[-length:]) for stop in self._stop)
            ),
            0,
        )

    def _release(self, end: int) -> str:
        text = self._decoded[self._released : end]
        self._released = max(self._released, end)
        return text


def _end_of_object(text: str) -> int | None:
    """Return where the JSON object at the beginning of the text ends; None if it is none, or not yet whole."""
    begin = len(text) - len(text.lstrip())
    if not text.startswith("{", begin):
        return None
    try:
        return json.JSONDecoder().raw_decode(text, begin)[1]
    except json.JSONDecodeError:
        return None
