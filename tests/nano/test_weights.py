"""The shipped weights are what the digests name, are small, and are as good as the documentation says."""

from __future__ import annotations

import json
import math
import shutil
from typing import TYPE_CHECKING, Final

import pytest

from anven_pipelines.domain.errors import CorruptArtifact, InvalidInput
from anven_pipelines.nano import models
from anven_pipelines.nano.accuracy import measure
from anven_pipelines.nano.models import DIGESTS, MODELS, digests_of, model_folder, verify
from anven_pipelines.nano.prompts import anven_messages, legacy_messages
from anven_pipelines.nano.styles import CHAT_TEMPLATES
from anven_pipelines.nano.tasks import generate

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from anven_pipelines.nano.tasks import Item

MEGABYTE: Final = 1_000_000


@pytest.fixture
def copy_of_the_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copy the shipped files, and let them be found in place of the originals."""
    copy = tmp_path / "nano"
    shutil.copytree(model_folder(MODELS[0]).parent, copy)
    monkeypatch.setattr(models, "FOLDERS", (copy,))
    return copy


@pytest.mark.parametrize("name", MODELS)
def test_the_shipped_files_have_their_digests(name: str) -> None:
    verify(name)


def test_the_digests_name_every_file_and_no_other() -> None:
    folder = model_folder(MODELS[0]).parent

    assert json.loads((folder / DIGESTS).read_text(encoding="utf-8")) == digests_of(folder)


@pytest.mark.parametrize("file", ["model.safetensors", "ctranslate2/model.bin", "tokenizer.json"])
def test_a_changed_file_is_named(copy_of_the_models: Path, file: str) -> None:
    path = copy_of_the_models / "anven-nano" / file
    path.write_bytes(path.read_bytes()[:-1] + b"?")

    with pytest.raises(CorruptArtifact, match=f"anven-nano/{file}"):
        verify("anven-nano")
    verify("legacy-nano")


def test_a_missing_and_an_unknown_file_are_named(copy_of_the_models: Path) -> None:
    (copy_of_the_models / "legacy-nano" / "tokenizer.json").rename(copy_of_the_models / "legacy-nano" / "other.json")

    with pytest.raises(CorruptArtifact, match=r"legacy-nano/other\.json, legacy-nano/tokenizer\.json"):
        verify("legacy-nano")


def test_a_model_that_is_not_there_is_told_with_the_way_to_make_it(copy_of_the_models: Path) -> None:
    shutil.rmtree(copy_of_the_models / "anven-nano")

    with pytest.raises(InvalidInput, match=r"anven_pipelines\.nano\.train"):
        model_folder("anven-nano")


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(InvalidInput, match="known are legacy-nano, anven-nano"):
        model_folder("gpt-nano")


def test_all_files_together_are_under_ten_megabytes() -> None:
    folder = model_folder(MODELS[0]).parent

    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 10 * MEGABYTE


@pytest.mark.parametrize("name", MODELS)
def test_the_folder_holds_a_small_llama_with_its_own_chat_template(name: str) -> None:
    config = json.loads((model_folder(name) / "config.json").read_text(encoding="utf-8"))
    tokenizer = json.loads((model_folder(name) / "tokenizer_config.json").read_text(encoding="utf-8"))

    assert (config["architectures"], config["max_position_embeddings"]) == (["LlamaForCausalLM"], 512)
    assert (model_folder(name) / "model.safetensors").stat().st_size < 2 * MEGABYTE
    assert tokenizer["chat_template"] == CHAT_TEMPLATES[name]


@pytest.mark.parametrize(
    ("name", "style", "documented"),
    [
        ("legacy-nano", legacy_messages, (0.856, 0.911, 0.980)),
        ("anven-nano", anven_messages, (0.883, 1.0, 1.0)),
        ("anven-nano", legacy_messages, (0.565, 0.991, 0.352)),
    ],
)
def test_the_models_answer_as_well_as_documented(
    name: str,
    style: Callable[[Item], list[dict[str, str]]],
    documented: tuple[float, float, float],
) -> None:
    """The shares are those of docs/nano-models.md, by task: answer, intent, tool."""
    each = 40
    scores = measure(name, generate("golden", each * len(documented), seed=1), style)

    found = sum(score.right for score in scores) / sum(score.items for score in scores)
    # A share of n items has the variance p (1 - p) / n, and a mean of three such shares a ninth of their sum:
    # three standard errors are 0.075, 0.042 and 0.098.
    error = math.sqrt(sum(share * (1 - share) / each for share in documented)) / len(documented)
    assert abs(found - sum(documented) / len(documented)) <= 3 * error, scores
