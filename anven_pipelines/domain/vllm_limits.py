"""What vLLM refuses in a model's settings when it loads the model, told from config.json before a GPU is taken.

Only what is certain is refused: versions of vLLM and models with code of their own differ in the rest.

Source:
    `ModelConfig._verify_quantization` and `_get_and_verify_max_len` of vLLM 0.32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from anven_pipelines.domain.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

ALLOW_LONG: Final = "VLLM_ALLOW_LONG_MAX_MODEL_LEN"
_METHODS: Final = (
    *("auto_awq", "auto_gptq", "awq", "awq_marlin", "compressed-tensors", "deepseek_v4_fp8", "experts_int8", "fp8"),
    *("fp8_per_block", "fp8_per_channel", "fp8_per_tensor", "gpt_oss_mxfp4", "gptq", "gptq_marlin", "humming", "inc"),
    *("int8_per_channel_weight_only", "modelopt", "modelopt_fp4", "modelopt_mixed", "modelopt_mxfp8", "moe_wna16"),
    *("mxfp4", "mxfp8", "nvfp4_per_token", "online", "quark", "torchao"),
    *("bitsandbytes", "gguf"),  # of versions before 0.32
)
# A method is no other's: of those not listed some take over the weights of others.
_FAMILIES: Final[Mapping[str, str]] = {
    **dict.fromkeys(("awq", "auto_awq", "awq_marlin"), "awq"),
    **dict.fromkeys(("gptq", "auto_gptq", "gptq_marlin"), "gptq"),
    "fp8": "fp8",
    "compressed-tensors": "compressed-tensors",
}
_LENGTHS: Final = (
    *("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_target_positions"),
    *("max_sequence_length", "max_seq_length", "seq_len"),
)
_SCALED_ALREADY: Final = ("default", "llama3", "longrope", "su")
_SCALED_BY_VERSION: Final = ("yarn", "deepseek_yarn", "deepseek_llama_scaling")


class Longest(NamedTuple):
    """Longest prompt and answer together, in tokens.

    Attributes:
        certain: Every vLLM allows so much.
        possible: None allows more.
    """

    certain: int
    possible: int


def require_servable(
    config: Mapping[str, Any], *, model: str, quantization: str | None, max_model_len: int | None, allows_long: bool
) -> str | None:
    """Refuse settings that vLLM would refuse; return what it may refuse, depending on its version.

    Args:
        config: The model's config.json.
        model: Its name, for the error.
        quantization: As declared.
        max_model_len: As declared.
        allows_long: ALLOW_LONG is set where vLLM runs.

    Raises:
        InvalidInput: with what would be taken.
    """
    _require_quantization(config, model=model, declared=quantization)
    longest = longest_of(config)
    if max_model_len is None or longest is None or allows_long or max_model_len <= longest.certain:
        return None
    found = f"max_model_len is {max_model_len:,}; config.json of {model} allows {longest.certain:,} tokens"
    if max_model_len > longest.possible:
        message = f"{found}: declare at most {longest.possible:,}, or leave max_model_len out"
        raise InvalidInput(message)
    return f"{found}, and up to {longest.possible:,} in some versions of vLLM; others will not load it"


def longest_of(config: Mapping[str, Any]) -> Longest | None:
    """Return the longest request that config.json allows, its rope scaling counted; None where it names none."""
    text = config.get("text_config")
    settings = text if isinstance(text, dict) else config
    found = [settings[name] for name in _LENGTHS if isinstance(settings.get(name), int) and settings[name] > 0]
    if not found:
        return None
    own = settings.get("model_max_length")
    length = own if isinstance(own, int) and own > 0 else min(found)
    certain = possible = float(length)
    if "gemma3" not in str(config.get("model_type")):  # its length is scaled already
        for kind, factor, original in _scalings(settings):
            if kind in _SCALED_BY_VERSION:
                possible = max(possible, (original or length) * factor)
            elif kind not in _SCALED_ALREADY:
                certain = possible = max(certain, length * factor)
    return Longest(int(certain), max(int(possible), int(certain)))


def _scalings(settings: Mapping[str, Any]) -> Iterator[tuple[str, float, int | None]]:
    """Yield kind, factor and original length of each rope scaling; some models have one for each kind of layer."""
    for name in ("rope_parameters", "rope_scaling"):
        rope = settings.get(name)
        if not isinstance(rope, dict):
            continue
        nested = [each for each in rope.values() if isinstance(each, dict)]
        for each in nested or [rope]:
            factor, original = each.get("factor"), each.get("original_max_position_embeddings")
            if isinstance(factor, int | float):
                kind = str(each.get("rope_type") or each.get("type") or "default")
                yield kind, float(factor), original if isinstance(original, int) else None


def _require_quantization(config: Mapping[str, Any], *, model: str, declared: str | None) -> None:
    if declared is None:
        return
    if declared not in _METHODS:
        message = f"quantization is {declared!r}; leave it out, or declare one that vLLM knows: {', '.join(_METHODS)}"
        raise InvalidInput(message)
    written = config.get("quantization_config")
    method = str(written.get("quant_method")) if isinstance(written, dict) else ""
    families = {_FAMILIES.get(each, "") for each in (declared, method)}
    if "" not in families and len(families) > 1:
        message = (
            f"quantization is {declared!r}, and config.json of {model} says {method!r}: the weights are quantised that "
            "way and no other; leave quantization out"
        )
        raise InvalidInput(message)
