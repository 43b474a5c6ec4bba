from __future__ import annotations

import pytest

from anven_pipelines.domain.errors import InvalidInput
from anven_pipelines.domain.model_fit import GIB, MIB, ModelShape, fit_of, memory, require_fit

# Llama 3.2 3B: 28 layers, 8 key-value heads of 128, bfloat16.
CONFIG = {
    "torch_dtype": "bfloat16",
    "num_hidden_layers": 28,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "hidden_size": 3072,
    "max_position_embeddings": 131_072,
}
SHAPE = ModelShape.of_config(CONFIG, weight_bytes=6 * GIB)


def test_keys_and_values_by_hand() -> None:
    assert SHAPE.head_dim == 128
    assert SHAPE.kv_bytes_per_token(bytes_each=2) == 2 * 28 * 8 * 128 * 2 == 114_688


def test_a_request_of_full_length_must_fit_beside_the_weights() -> None:
    fit = fit_of(SHAPE, gpu_gib=24, gpus=1, fraction=0.9, precision="auto", max_model_len=None)
    assert fit.longest_request == 14 * GIB  # 131,072 x 114,688
    assert fit.available == int(21.6 * GIB)
    assert fit.fits
    require_fit(fit, model="m")
    small = fit_of(SHAPE, gpu_gib=16, gpus=1, fraction=0.9, precision="auto", max_model_len=None)
    assert not small.fits
    with pytest.raises(InvalidInput, match=f"m does not fit: .*max_model_len of at most {small.tokens} would fit"):
        require_fit(small, model="m")
    assert fit_of(SHAPE, gpu_gib=16, gpus=1, fraction=0.9, precision="auto", max_model_len=small.tokens).fits
    assert fit_of(SHAPE, gpu_gib=16, gpus=2, fraction=0.9, precision="auto", max_model_len=None).fits


def test_weights_that_do_not_fit_need_more_gpus() -> None:
    fit = fit_of(SHAPE, gpu_gib=8, gpus=1, fraction=0.9, precision="float32", max_model_len=4096)
    assert fit.weights == 12 * GIB
    with pytest.raises(InvalidInput, match="raise tensor_parallel"):
        require_fit(fit, model="m")


@pytest.mark.parametrize("missing", ["num_hidden_layers", "num_attention_heads", "max_position_embeddings"])
def test_a_config_without_a_size_is_refused(missing: str) -> None:
    with pytest.raises(InvalidInput, match=missing):
        ModelShape.of_config({name: value for name, value in CONFIG.items() if name != missing}, weight_bytes=1)


@pytest.mark.parametrize(
    ("size", "said"),
    [
        (0, "0.00 MiB"),
        (MIB // 2, "0.50 MiB"),
        (90 * MIB, "90.00 MiB"),
        (GIB // 2, "0.50 GiB"),
        (2_000 * GIB, "2,000.00 GiB"),
    ],
)
def test_memory_is_told_in_a_unit_that_shows_it(size: int, said: str) -> None:
    assert memory(size) == said


def test_a_tiny_model_that_does_not_fit_is_told_in_mebibytes() -> None:
    tiny = ModelShape.of_config(CONFIG | {"max_position_embeddings": 8}, weight_bytes=3 * MIB)
    fit = fit_of(tiny, gpu_gib=0.001, gpus=1, fraction=1, precision="auto", max_model_len=None)
    with pytest.raises(InvalidInput, match=r"weights take 3\.00 MiB .* length 0\.88 MiB, the engine may use 1\.02 MiB"):
        require_fit(fit, model="m")
