"""Writes a trained nano model: Hugging Face layout, its CTranslate2 conversion, and the digests of both."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import ctranslate2
import torch

from anven_pipelines.nano.models import DIGESTS, digests_of
from anven_pipelines.nano.tokenizer_training import write_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from tokenizers import Tokenizer


def write_model(model: Any, tokenizer: Tokenizer, name: str, out: Path) -> None:  # noqa: ANN401 - torch is no dependency
    """Write `out/name` anew, and `out/digests.json` over all models in `out`; weights are stored in 16 bits."""
    folder = out / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model.to(torch.float16).save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # safetensors leaves it to its owner alone
    write_tokenizer(tokenizer, name, folder)
    converter = ctranslate2.converters.TransformersConverter(str(folder))
    converter.convert(str(folder / "ctranslate2"), quantization="float16")
    (out / DIGESTS).write_text(json.dumps(digests_of(out), indent=2) + "\n", encoding="utf-8")
