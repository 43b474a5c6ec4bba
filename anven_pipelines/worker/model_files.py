"""What an embedded engine reads from a model's folder, beside the weights."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel

from anven_pipelines.domain.errors import UnreadableSource
from anven_pipelines.worker.chat_template import ChatTemplate

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """A model's tokenizer, chat template and limits.

    Attributes:
        weights_folder: The CTranslate2 conversion.
        weights_digest: SHA-256, in hex, of the converted weights.
        tokenizer: Text to tokens and back.
        template: Messages to text.
        context_length: Tokens of prompt and answer together.
        end_ids: Tokens that end the model's turn.
    """

    weights_folder: Path
    weights_digest: str
    tokenizer: Tokenizer
    template: ChatTemplate
    context_length: int
    end_ids: frozenset[int]

    @classmethod
    def read(cls, folder: Path) -> ModelFiles:
        """Read a folder in Hugging Face layout with a CTranslate2 conversion in `ctranslate2/`.

        Raises:
            UnreadableSource: a file is missing or broken, or the conversion has another vocabulary than the tokenizer.
        """
        weights_folder = folder / "ctranslate2"
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            tokenizer = _tokenizer((folder / "tokenizer.json").read_text(encoding="utf-8"))
            vocabulary = json.loads((weights_folder / "vocabulary.json").read_text(encoding="utf-8"))
            files = cls(
                weights_folder=weights_folder,
                weights_digest=hashlib.sha256((weights_folder / "model.bin").read_bytes()).hexdigest(),
                tokenizer=tokenizer,
                template=ChatTemplate.of_folder(folder),
                context_length=int(config["max_position_embeddings"]),
                end_ids=_end_ids(folder, config),
            )
        except (OSError, ValueError, KeyError) as error:
            message = f"{folder} is no model folder with a CTranslate2 conversion: {type(error).__name__}: {error}"
            raise UnreadableSource(message) from error
        if vocabulary != [tokenizer.id_to_token(token_id) for token_id in range(len(vocabulary))]:
            message = f"{weights_folder}/vocabulary.json differs from {folder}/tokenizer.json; convert the model again"
            raise UnreadableSource(message)
        return files

    def prompt_tokens(self, messages: Sequence[Mapping[str, Any]]) -> list[str]:
        """Write messages as the tokens of the prompt; the template places every special token, the first included.

        Raises:
            UnsupportedRequest: the chat template refuses the messages.
        """
        text = self.template.render(messages)
        return self.tokenizer.encode(text, add_special_tokens=False).tokens

    def token(self, token_id: int) -> tuple[str, bytes]:
        """Return a token's text, with U+FFFD for half a character, and its bytes."""
        text = self.tokenizer.decode([token_id], skip_special_tokens=False)
        piece = self.tokenizer.id_to_token(token_id) or ""
        if isinstance(self.tokenizer.decoder, ByteLevel) and all(sign in _BYTES for sign in piece):
            return text, bytes(_BYTES[sign] for sign in piece)
        return text, text.encode()


def _tokenizer(text: str) -> Tokenizer:
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing narrower
        message = f"tokenizer.json: {error}"
        raise ValueError(message) from error


def _end_ids(folder: Path, config: Mapping[str, Any]) -> frozenset[int]:
    """Return the end tokens: the generation settings' own, else the architecture's."""
    file = folder / "generation_config.json"
    generation = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    found = generation.get("eos_token_id", config.get("eos_token_id"))
    return frozenset(found if isinstance(found, list) else [] if found is None else [found])


def _byte_signs() -> dict[str, int]:
    """Return the byte of each sign that byte-level BPE writes for it: printable ones stand for themselves.

    Source:
        `bytes_to_unicode` of the GPT-2 tokenizer (Radford et al., 2019).
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + place): byte for place, byte in enumerate(others)}


_BYTES = _byte_signs()
