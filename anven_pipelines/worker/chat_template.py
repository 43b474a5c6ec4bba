"""A model folder's chat template, rendered as Hugging Face and vLLM render it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NoReturn

from jinja2 import TemplateError, TemplateSyntaxError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from anven_pipelines.domain.errors import InvalidInput, UnreadableSource
from anven_pipelines.worker.engine import UnsupportedRequest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


class ChatTemplate:
    """Writes messages as the text that the model was trained to continue.

    The template is a program from the model's folder, so it runs in Jinja's immutable sandbox.
    """

    def __init__(self, source: str, *, special_tokens: Mapping[str, str]) -> None:
        """Compile the template.

        Args:
            source: Jinja template.
            special_tokens: `bos_token`, `eos_token` and the like, by the names that templates use.

        Raises:
            UnreadableSource: the template is not Jinja.
        """
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals.update(special_tokens, raise_exception=_refuse)
        try:
            self._template = environment.from_string(source)
        except TemplateSyntaxError as error:
            message = f"the chat template is no Jinja template: line {error.lineno}: {error.message}"
            raise UnreadableSource(message) from error

    @classmethod
    def of_folder(cls, folder: Path) -> ChatTemplate:
        """Read the template from `chat_template.jinja` or from `tokenizer_config.json`.

        Raises:
            UnreadableSource: the folder has neither.
        """
        config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        file = folder / "chat_template.jinja"
        source = file.read_text(encoding="utf-8") if file.is_file() else config.get("chat_template")
        if not isinstance(source, str):
            message = f"{folder}: neither chat_template.jinja nor tokenizer_config.json holds a chat template"
            raise UnreadableSource(message)
        named = {name: _token_text(value) for name, value in config.items() if name.endswith("_token") and value}
        return cls(source, special_tokens=named)

    def render(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """Write the prompt, up to where the model's own turn begins.

        Raises:
            UnsupportedRequest: the template refuses these messages, for example an order of roles.
        """
        try:
            return self._template.render(messages=messages, add_generation_prompt=True, tools=None)
        except (TemplateError, InvalidInput, TypeError) as error:
            message = f"the model's chat template cannot write these messages: {error}"
            raise UnsupportedRequest(message, field="messages") from error


def _token_text(value: str | Mapping[str, str]) -> str:
    """Return a special token's text; older folders describe it with an object."""
    return value if isinstance(value, str) else value["content"]


def _to_json(value: object, indent: int | None = None) -> str:
    """Write JSON as Hugging Face does; Jinja's own filter would escape it for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> NoReturn:
    raise InvalidInput(message)
