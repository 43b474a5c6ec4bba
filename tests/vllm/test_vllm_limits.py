"""What is told from config.json alone is what vLLM itself says."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from anven_pipelines.domain.errors import InvalidInput
from anven_pipelines.domain.vllm_limits import require_servable
from anven_pipelines.nano.models import model_folder

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.vllm

LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}
CASES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"max_model_len": 128}),
    ({}, {"max_model_len": 129}),
    ({"rope_parameters": LINEAR}, {"max_model_len": 256}),
    ({"rope_parameters": LINEAR}, {"max_model_len": 257}),
    ({"rope_parameters": LLAMA3}, {"max_model_len": 128}),
    ({"rope_parameters": LLAMA3}, {"max_model_len": 129}),
    ({"model_max_length": 512}, {"max_model_len": 512}),
    ({"model_max_length": 512}, {"max_model_len": 513}),
    ({}, {"quantization": "awqq"}),
    ({"quantization_config": AWQ}, {"quantization": "gptq"}),
    ({"quantization_config": AWQ}, {"quantization": "fp8"}),
]
ASK = """
import json, sys
from vllm.config import ModelConfig
for folder, declared in json.load(sys.stdin):
    try:
        ModelConfig(model=folder, **declared)
        print("taken")
    except ValueError as error:
        print("refused", str(error).replace(chr(10), " "))
"""


def is_taken(config: dict[str, Any], declared: dict[str, Any]) -> bool:
    given = {"quantization": None, "max_model_len": None} | declared
    try:
        return require_servable(config, model="m", allows_long=False, **given) is None
    except InvalidInput:
        return False


def test_vllm_takes_and_refuses_the_same(tmp_path: Path, vllm_python: str) -> None:
    own = json.loads((model_folder("anven-nano") / "config.json").read_text()) | {"max_position_embeddings": 128}
    configs = [own | change for change, _ in CASES]
    folders = []
    for at, config in enumerate(configs):
        folder = tmp_path / str(at)
        shutil.copytree(model_folder("anven-nano"), folder, ignore=shutil.ignore_patterns("ctranslate2"))
        (folder / "config.json").write_text(json.dumps(config))
        folders.append(str(folder))
    asked = json.dumps([(folder, declared) for folder, (_, declared) in zip(folders, CASES, strict=True)])
    done = subprocess.run(
        [vllm_python, "-c", ASK],
        input=asked,
        env={**os.environ, "VLLM_HOST_IP": "127.0.0.1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=True,
        timeout=280,
    )
    said = [line for line in done.stdout.splitlines() if line.startswith(("taken", "refused"))]
    ours = [is_taken(config, declared) for config, (_, declared) in zip(configs, CASES, strict=True)]
    assert [line.startswith("taken") for line in said] == ours, "\n".join(said)
    assert {True, False} == set(ours)
