"""A model folder's chat template, rendered as Hugging Face and vLLM render it."""

from __future__ import annotations

import json
from datetime import datetime
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

    def __init__(self, source: str, *, special_tokens: Mapping[str, str], called: str = "the chat template") -> None:
        """Compile the template.

        Args:
            source: Jinja template.
            special_tokens: `bos_token`, `eos_token` and the like, by the names that templates use.
            called: What errors call it.

        Raises:
            UnreadableSource: the template is not Jinja.
        """
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals.update(special_tokens, raise_exception=_refuse, strftime_now=_now)
        try:
            self._template = environment.from_string(source)
        except TemplateSyntaxError as error:
            message = f"{called} is no Jinja template: line {error.lineno}: {error.message}"
            raise UnreadableSource(message) from error

    @classmethod
    def of_folder(cls, folder: Path) -> ChatTemplate:
        """Read the template from `chat_template.jinja` or from `tokenizer_config.json`.

        Raises:
            UnreadableSource: the folder has neither.
        """
        file, config_file = folder / "chat_template.jinja", folder / "tokenizer_config.json"
        config = json.loads(config_file.read_text(encoding="utf-8"))
        alone = file.is_file()
        source = file.read_text(encoding="utf-8") if alone else config.get("chat_template")
        if not isinstance(source, str):
            message = f"{folder}: neither chat_template.jinja nor tokenizer_config.json holds a chat template"
            raise UnreadableSource(message)
        named = {name: _token_text(value) for name, value in config.items() if name.endswith("_token") and value}
        called = f"{file}: it" if alone else f"{config_file}: chat_template"
        return cls(source, special_tokens=named, called=called)

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


def _to_json(
    value: object,
    ensure_ascii: bool = False,  # noqa: FBT001, FBT002 - templates name it, and Hugging Face's filter has it here
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,  # noqa: FBT001, FBT002 - as above
) -> str:
    """Write JSON as Hugging Face does; Jinja's own filter would escape it for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _now(form: str) -> str:
    """Write the local time; templates that find no `strftime_now` print a date of their own, years old."""
    return datetime.now().astimezone().strftime(form)


def _refuse(message: str) -> NoReturn:
    raise InvalidInput(message)
