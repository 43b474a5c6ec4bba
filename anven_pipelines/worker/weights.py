"""A model folder's weights: which they are, and how large."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from anven_pipelines.domain.errors import UnreadableSource
from anven_pipelines.domain.model_fit import ModelShape

if TYPE_CHECKING:
    from pathlib import Path

_PATTERNS: Final = ("*.safetensors", "*.bin", "*.gguf")
_BLOCK: Final = 1 << 24


class Weights(NamedTuple):
    """The weight files of a folder, and its config.json."""

    files: list[Path]
    config: dict[str, Any]

    @classmethod
    def in_folder(cls, folder: Path) -> Weights:
        """Find them.

        Raises:
            UnreadableSource: the folder is in no Hugging Face layout.
        """
        files = sorted(file for pattern in _PATTERNS for file in folder.glob(pattern))
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            message = f"{folder} holds no model in Hugging Face layout: config.json: {error}"
            raise UnreadableSource(message) from error
        if not files or not isinstance(config, dict):
            message = f"{folder} holds no model in Hugging Face layout; {' or '.join(_PATTERNS)} are needed"
            raise UnreadableSource(message)
        return cls(files, config)

    def shape(self) -> ModelShape:
        """Return what decides about memory.

        Raises:
            InvalidInput: config.json lacks a size.
        """
        return ModelShape.of_config(self.config, weight_bytes=sum(file.stat().st_size for file in self.files))

    def digest(self) -> str:
        """Return the SHA-256 of a single file, or over the names and digests of several.

        Raises:
            UnreadableSource: a file cannot be read.
        """
        try:
            digests = {file.name: _digest_of_file(file) for file in self.files}
        except OSError as error:
            message = f"the weights cannot be read: {error}"
            raise UnreadableSource(message) from error
        if len(digests) == 1:
            return next(iter(digests.values()))
        return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


def _digest_of_file(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
