"""Canonical JSON and digests: the same value gives the same bytes everywhere."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import polars.selectors as cs

if TYPE_CHECKING:
    import polars as pl


def canonical_json(value: object) -> str:
    """Write JSON with sorted keys, no spaces, UTF-8 and no NaN.

    Raises:
        ValueError: the value holds a NaN or an infinity.

    Source:
        The idea of RFC 8785 (JSON Canonicalization Scheme); number formatting is Python's repr.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest_of(value: object) -> str:
    """Return the SHA-256, in hex, of the value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def digest_of_rows(frame: pl.DataFrame) -> str:
    """Return the SHA-256, in hex, of the frame's schema and rows, in their order.

    Rows are hashed as newline-delimited JSON, binary columns as base64, so the digest does not depend on how Parquet
    was written. NaN would hash like NULL; whoever publishes rows refuses it.
    """
    digest = hashlib.sha256(canonical_json({name: str(dtype) for name, dtype in frame.schema.items()}).encode())
    digest.update(frame.with_columns(cs.binary().bin.encode("base64")).write_ndjson().encode())
    return digest.hexdigest()
