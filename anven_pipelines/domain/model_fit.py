"""Whether a model fits the memory of the GPUs that are to serve it: weights, and room for at least one request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from anven_pipelines.domain.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Mapping

GIB: Final = 1 << 30
MIB: Final = 1 << 20
_BYTES: Final[Mapping[str, int]] = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """What decides how much memory a decoder takes.

    Attributes:
        weight_bytes: Size of the weight files.
        weight_bytes_each: Bytes of a weight in them.
        layers: Decoder layers.
        kv_heads: Heads whose keys and values are kept.
        head_dim: Numbers per key.
        context_length: Longest prompt and answer together.
    """

    weight_bytes: int
    weight_bytes_each: int
    layers: int
    kv_heads: int
    head_dim: int
    context_length: int

    @classmethod
    def of_config(cls, config: Mapping[str, Any], *, weight_bytes: int) -> ModelShape:
        """Read a Hugging Face config.json of a decoder with grouped-query attention.

        Raises:
            InvalidInput: a size is missing.
        """
        try:
            heads = int(config["num_attention_heads"])
            return cls(
                weight_bytes=weight_bytes,
                weight_bytes_each=_BYTES.get(str(config.get("dtype") or config.get("torch_dtype")), 2),
                layers=int(config["num_hidden_layers"]),
                kv_heads=int(config.get("num_key_value_heads") or heads),
                head_dim=int(config.get("head_dim") or int(config["hidden_size"]) // heads),
                context_length=int(config["max_position_embeddings"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            message = f"config.json lacks what the memory rests on: {error!r}"
            raise InvalidInput(message) from error

    def kv_bytes_per_token(self, *, bytes_each: int) -> int:
        """Return the bytes of keys and values that one token of context keeps."""
        return 2 * self.layers * self.kv_heads * self.head_dim * bytes_each


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Memory in bytes, over all GPUs of the model.

    Attributes:
        available: Share of the GPUs' memory that the engine may use.
        weights: The weights in the precision of the computation.
        longest_request: Keys and values of one request of full length.
        tokens: Context that fits beside the weights, over all requests.
    """

    available: int
    weights: int
    longest_request: int
    tokens: int

    @property
    def fits(self) -> bool:
        """Whether the weights and one request of full length fit."""
        return self.weights + self.longest_request <= self.available


def fit_of(
    shape: ModelShape, *, gpu_gib: float, gpus: int, fraction: float, precision: str, max_model_len: int | None
) -> Fit:
    """Compute the memory that weights and keys and values take; activations, some percent, are left out.

    Args:
        shape: The model.
        gpu_gib: Memory of one GPU, in GiB.
        gpus: GPUs over which the model is split.
        fraction: Share of each GPU's memory that the engine may use.
        precision: Number format of the computation; `auto` keeps that of the weights.
        max_model_len: Longest request in tokens; the model's own limit where None.
    """
    each = _BYTES.get(precision, shape.weight_bytes_each)
    weights = shape.weight_bytes * each // shape.weight_bytes_each
    available = int(gpu_gib * GIB * gpus * fraction)
    per_token = shape.kv_bytes_per_token(bytes_each=each)
    return Fit(
        available=available,
        weights=weights,
        longest_request=per_token * (max_model_len or shape.context_length),
        tokens=max(0, available - weights) // per_token,
    )


def require_fit(fit: Fit, *, model: str) -> None:
    """Refuse a model that cannot serve one request of full length.

    Raises:
        InvalidInput: it does not fit; the message says what would.
    """
    if fit.fits:
        return
    message = (
        f"{model} does not fit: its weights take {memory(fit.weights)} and one request of full length "
        f"{memory(fit.longest_request)}, the engine may use {memory(fit.available)}; "
    )
    if fit.weights < fit.available:
        message += f"max_model_len of at most {fit.tokens} would fit"
    else:
        message += "raise tensor_parallel or kv_cache_fraction, or take quantised weights or a larger GPU"
    raise InvalidInput(message)


def memory(size: int) -> str:
    """Write a number of bytes for people: of a tiny model in MiB, whose GiB would be 0.00."""
    return f"{size / GIB:,.2f} GiB" if size >= GIB // 10 else f"{size / MIB:,.2f} MiB"
