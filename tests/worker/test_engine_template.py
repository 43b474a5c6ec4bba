"""Chat templates and model folders: rendered as the models were trained, refused where they cannot be used."""

from __future__ import annotations

import json
import shutil
from datetime import datetime
from typing import TYPE_CHECKING, Final

import pytest

from anven_pipelines.domain.errors import UnreadableSource
from anven_pipelines.nano.models import model_folder
from anven_pipelines.worker.chat_template import ChatTemplate
from anven_pipelines.worker.engine import UnsupportedRequest
from anven_pipelines.worker.model_files import ModelFiles

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HELLO: Final = [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}{% endfor %}", "<s>user: hello"),
        ("{% for m in messages %}\n  {{ m.content }}\n{% endfor %}", "  hello\n"),
        ("{% for m in messages %}{% break %}{% endfor %}{{ add_generation_prompt }}", "True"),
        ("{{ {'a': '<é>'} | tojson }}", '{"a": "<é>"}'),
        ("{{ {'b': 'é', 'a': [1]} | tojson(ensure_ascii=True, sort_keys=True) }}", '{"a": [1], "b": "\\u00e9"}'),
        ("{{ {'a': [1, 2]} | tojson(separators=(',', ':')) }}", '{"a":[1,2]}'),
        ("{{ {'a': 1} | tojson(indent=2) }}", '{\n  "a": 1\n}'),
        ("{{ {'a': 'é'} | tojson(true) }}", '{"a": "\\u00e9"}'),
        ("{{ tools is none }}", "True"),
    ],
)
def test_templates_mean_what_they_mean_to_hugging_face(source: str, text: str) -> None:
    assert ChatTemplate(source, special_tokens={"bos_token": "<s>"}).render(HELLO) == text


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages[0].content + 1 }}",
    ],
)
def test_a_template_that_refuses_or_misbehaves_is_the_requests_fault(source: str) -> None:
    with pytest.raises(UnsupportedRequest, match="chat template cannot write these messages") as raised:
        ChatTemplate(source, special_tokens={}).render(HELLO)
    assert raised.value.field == "messages"


def test_a_template_that_asks_for_the_date_gets_todays() -> None:
    llama_3 = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% else %}26 Jul 2024{% endif %}"
    before = datetime.now().astimezone()
    written = ChatTemplate(llama_3, special_tokens={}).render(HELLO)
    assert written in {moment.strftime("%d %b %Y") for moment in (before, datetime.now().astimezone())}


def test_a_template_that_is_none_is_refused_with_its_line() -> None:
    with pytest.raises(UnreadableSource, match="line 2"):
        ChatTemplate("\n{% for %}", special_tokens={})


def test_a_folders_template_that_is_none_is_refused_with_its_file(copied: Path) -> None:
    config = copied / "tokenizer_config.json"
    config.write_text(json.dumps({"chat_template": "\n{% for %}"}), encoding="utf-8")
    with pytest.raises(UnreadableSource, match=r"copy/tokenizer_config\.json: chat_template is no Jinja .*line 2"):
        ChatTemplate.of_folder(copied)
    (copied / "chat_template.jinja").write_text("{% for %}", encoding="utf-8")
    with pytest.raises(UnreadableSource, match=r"copy/chat_template\.jinja: it is no Jinja template: line 1"):
        ChatTemplate.of_folder(copied)


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """Copy a shipped model's folder."""
    return shutil.copytree(model_folder("anven-nano"), tmp_path / "copy")


def test_a_template_in_its_own_file_comes_first(copied: Path) -> None:
    (copied / "chat_template.jinja").write_text("{{ messages[0].content }}!", encoding="utf-8")
    assert ChatTemplate.of_folder(copied).render(HELLO) == "hello!"


def _without_template(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text("{}", encoding="utf-8")


def _other_vocabulary(folder: Path) -> None:
    path = folder / "ctranslate2" / "vocabulary.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8"))[::-1]), encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "config.json").unlink(), "no model folder.*config.json"),
        (lambda folder: (folder / "config.json").write_text("{}", encoding="utf-8"), "max_position_embeddings"),
        (lambda folder: (folder / "tokenizer.json").write_text("{", encoding="utf-8"), "no model folder.*tokenizer"),
        (lambda folder: (folder / "ctranslate2" / "model.bin").unlink(), "no model folder.*model.bin"),
        (_without_template, "chat template"),
        (_other_vocabulary, "convert the model again"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused(copied: Path, damage: Callable[[Path], object], said: str) -> None:
    damage(copied)
    with pytest.raises(UnreadableSource, match=said):
        ModelFiles.read(copied)


def test_the_bytes_of_tokens_make_up_the_text() -> None:
    files = ModelFiles.read(model_folder("anven-nano"))
    for text in ("Größe 42 😀", '{"a": 1}\n', "\x00\t"):
        ids = files.tokenizer.encode(text, add_special_tokens=False).ids
        assert b"".join(files.token(token_id)[1] for token_id in ids) == text.encode()
