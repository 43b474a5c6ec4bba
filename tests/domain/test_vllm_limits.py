"""What vLLM would refuse is told from config.json; `tests/vllm/test_vllm_limits.py` asks vLLM itself."""

from __future__ import annotations

from typing import Any

import pytest

from anven_pipelines.domain.errors import InvalidInput
from anven_pipelines.domain.vllm_limits import Longest, longest_of, require_servable

LENGTH = {"max_position_embeddings": 4096}


def doubt(config: dict[str, Any], **declared: Any) -> str | None:
    return require_servable(
        config, **({"model": "m", "quantization": None, "max_model_len": None, "allows_long": False} | declared)
    )


@pytest.mark.parametrize(
    ("config", "longest"),
    [
        ({}, None),
        ({"max_position_embeddings": None}, None),
        (LENGTH, Longest(4096, 4096)),
        (LENGTH | {"seq_length": 2048}, Longest(2048, 2048)),
        (LENGTH | {"model_max_length": 8192}, Longest(8192, 8192)),
        ({"text_config": LENGTH}, Longest(4096, 4096)),
        (LENGTH | {"rope_scaling": None}, Longest(4096, 4096)),
        (LENGTH | {"rope_scaling": {"type": "linear", "factor": 4.0}}, Longest(16384, 16384)),
        (LENGTH | {"rope_scaling": {"rope_type": "dynamic", "factor": 2}}, Longest(8192, 8192)),
        (LENGTH | {"rope_parameters": {"rope_type": "linear", "factor": 2}}, Longest(8192, 8192)),
        (LENGTH | {"rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 2}}}, Longest(8192, 8192)),
        (LENGTH | {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, Longest(4096, 4096)),
        (LENGTH | {"rope_scaling": {"rope_type": "longrope", "factor": 8.0}}, Longest(4096, 4096)),
        (LENGTH | {"rope_scaling": {"rope_type": "default"}}, Longest(4096, 4096)),
        (
            LENGTH | {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}},
            Longest(4096, 8192),
        ),
        (LENGTH | {"rope_scaling": {"type": "yarn", "factor": 4.0}}, Longest(4096, 16384)),
        (LENGTH | {"model_type": "gemma3_text", "rope_scaling": {"type": "linear", "factor": 8}}, Longest(4096, 4096)),
    ],
)
def test_the_longest_request_counts_the_rope_scaling(config: dict[str, Any], longest: Longest | None) -> None:
    assert longest_of(config) == longest


@pytest.mark.parametrize(
    ("config", "declared"),
    [
        (LENGTH, {}),
        (LENGTH, {"max_model_len": 4096}),
        (LENGTH, {"max_model_len": 9999, "allows_long": True}),
        ({}, {"max_model_len": 9999}),
        (LENGTH, {"quantization": "fp8"}),
        ({"quantization_config": {"quant_method": "awq"}}, {}),
        ({"quantization_config": {"quant_method": "awq"}}, {"quantization": "awq_marlin"}),
        ({"quantization_config": {"quant_method": "awq"}}, {"quantization": "moe_wna16"}),
        ({"quantization_config": {"quant_method": "new"}}, {"quantization": "fp8"}),
        ({"quantization_config": "odd"}, {"quantization": "fp8"}),
    ],
)
def test_what_vllm_takes_is_taken(config: dict[str, Any], declared: dict[str, Any]) -> None:
    assert doubt(config, **declared) is None


@pytest.mark.parametrize(
    ("config", "declared", "message"),
    [
        (
            LENGTH,
            {"max_model_len": 4097},
            "max_model_len is 4,097; config.json of m allows 4,096 tokens: declare at most",
        ),
        (
            LENGTH,
            {"quantization": "awqq"},
            "quantization is 'awqq'; leave it out, or declare one that vLLM knows: auto_aw",
        ),
        (
            {"quantization_config": {"quant_method": "gptq"}},
            {"quantization": "awq"},
            "quantization is 'awq', and config.json of m says 'gptq'",
        ),
    ],
)
def test_what_vllm_would_refuse_is_refused(config: dict[str, Any], declared: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        doubt(config, **declared)


def test_what_versions_of_vllm_differ_in_is_only_told() -> None:
    yarn = LENGTH | {"rope_scaling": {"type": "yarn", "factor": 4.0}}
    said = doubt(yarn, max_model_len=8192)
    assert said == (
        "max_model_len is 8,192; config.json of m allows 4,096 tokens, and up to 16,384 in some versions of vLLM; "
        "others will not load it"
    )
    with pytest.raises(InvalidInput, match="declare at most 16,384"):
        doubt(yarn, max_model_len=16385)
