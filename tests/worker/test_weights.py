from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest

from anven_pipelines.domain.errors import UnreadableSource
from anven_pipelines.nano.models import model_folder
from anven_pipelines.worker.weights import Weights
from tests.model_places import PARTS, digest_of_parts, put_model

if TYPE_CHECKING:
    from pathlib import Path


def test_one_file_has_its_own_digest() -> None:
    folder = model_folder("anven-nano")
    found = Weights.in_folder(folder)
    assert list(found.files) == ["model.safetensors"]
    assert found.digest() == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert found.shape().layers == 4


def test_several_files_count_with_their_names(tmp_path: Path) -> None:
    put_model(tmp_path / "m")
    found = Weights.in_folder(tmp_path / "m")
    assert found.digest() == digest_of_parts()
    assert found.shape().weight_bytes == sum(map(len, PARTS.values()))
    (tmp_path / "m" / "model.safetensors.index.json").unlink()
    (tmp_path / "m" / "model-3-of-3.safetensors").rename(tmp_path / "m" / "other.safetensors")
    assert Weights.in_folder(tmp_path / "m").digest() != digest_of_parts()


@pytest.mark.parametrize("config", [None, "{", "[]", "{}"])
def test_a_folder_without_a_model_is_refused(tmp_path: Path, config: str | None) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(UnreadableSource, match="holds no model in Hugging Face layout"):
        Weights.in_folder(tmp_path)


def test_half_a_model_is_refused(tmp_path: Path) -> None:
    put_model(tmp_path / "m")
    (tmp_path / "m" / "model-2-of-3.safetensors").unlink()
    with pytest.raises(UnreadableSource, match=r"lacks model-2-of-3\.safetensors, which .*index\.json names"):
        Weights.in_folder(tmp_path / "m")
