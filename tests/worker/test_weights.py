from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import pytest

from anven_pipelines.domain.errors import UnreadableSource
from anven_pipelines.nano.models import model_folder
from anven_pipelines.worker.weights import Weights

if TYPE_CHECKING:
    from pathlib import Path


def test_one_file_has_its_own_digest() -> None:
    folder = model_folder("anven-nano")
    found = Weights.in_folder(folder)
    assert [file.name for file in found.files] == ["model.safetensors"]
    assert found.digest() == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert found.shape().layers == 4


def test_several_files_count_with_their_names(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for name in ("a.safetensors", "b.safetensors"):
        (tmp_path / name).write_bytes(name.encode())
    before = Weights.in_folder(tmp_path).digest()
    named = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("a.safetensors", "b.safetensors")}
    assert before == hashlib.sha256(json.dumps(named).encode()).hexdigest()
    (tmp_path / "b.safetensors").rename(tmp_path / "c.safetensors")
    assert Weights.in_folder(tmp_path).digest() != before


@pytest.mark.parametrize("config", [None, "{", "[]", "{}"])
def test_a_folder_without_a_model_is_refused(tmp_path: Path, config: str | None) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(UnreadableSource, match="holds no model in Hugging Face layout"):
        Weights.in_folder(tmp_path)
