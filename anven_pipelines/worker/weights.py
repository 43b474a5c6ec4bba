"""A model's weights, wherever they lie: which they are, and how large."""

from __future__ import annotations

import hashlib
import json
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from anven_pipelines.domain.errors import UnreadableSource
from anven_pipelines.domain.model_fit import ModelShape
from anven_pipelines.domain.vllm_limits import ALLOW_LONG, require_servable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from anven_pipelines.spec_target import JobTarget

BLOCK: Final = 1 << 24
_WEIGHTS: Final = ("*.safetensors", "*.bin", "*.gguf")
_BESIDE_THEM: Final = ("*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken")  # settings, tokenizer, chat template
_CONFIG: Final = "config.json"
_INDEX: Final = "model.safetensors.index.json"


class StoredFile(NamedTuple):
    """A file of a model, as its store lists it.

    Attributes:
        size: Bytes.
        version: Changes when its bytes do, as far as the store tells.
        sha256: What its bytes must have, in hex; None where the store does not say.
    """

    size: int
    version: str
    sha256: str | None = None


class WeightSource(Protocol):
    """Where a model lies: a folder in Hugging Face layout, under whatever name."""

    @property
    def name(self) -> str:
        """What people are shown."""

    def files(self) -> Mapping[str, StoredFile]:
        """Return what an engine needs of the folder, by file name; nothing of it is read."""

    def blocks(self, file: str) -> Iterator[bytes]:
        """Yield a file's bytes."""


class LocalFolder(NamedTuple):
    """A folder of this machine, used where it is."""

    path: Path
    name: str

    def files(self) -> Mapping[str, StoredFile]:
        """See `WeightSource`.

        Raises:
            UnreadableSource: there is no such folder.
        """
        try:
            sizes = {each.name: each.stat() for each in self.path.iterdir() if is_needed(each.name) and each.is_file()}
        except OSError as error:
            message = f"{self.name} holds no model in Hugging Face layout: {error}; name a folder of this machine"
            raise UnreadableSource(message) from error
        return {name: StoredFile(stat.st_size, str(stat.st_mtime_ns)) for name, stat in sizes.items()}

    def blocks(self, file: str) -> Iterator[bytes]:
        """See `WeightSource`.

        Raises:
            UnreadableSource: the file cannot be read.
        """
        try:
            with (self.path / file).open("rb") as opened:
                while block := opened.read(BLOCK):
                    yield block
        except OSError as error:
            message = f"{self.name}: {file} cannot be read: {error}"
            raise UnreadableSource(message) from error


class Weights(NamedTuple):
    """The weight files of a model, and its config.json."""

    source: WeightSource
    files: Mapping[str, StoredFile]
    config: Mapping[str, Any]

    @classmethod
    def in_folder(cls, folder: Path) -> Weights:
        """Find them in a folder of this machine; see `of`."""
        return cls.of(LocalFolder(folder, str(folder)))

    @classmethod
    def of(cls, source: WeightSource) -> Weights:
        """Find them; of the files only the two that describe the others are read.

        Raises:
            UnreadableSource: there is no model in Hugging Face layout, or part of it is missing.
            UnavailableService: the store does not answer.
        """
        listed = source.files()
        config = _document(source, listed, _CONFIG)
        files = {name: listed[name] for name in sorted(listed) if is_weights(name)}
        if not files:
            message = f"{source.name} holds no model in Hugging Face layout; {' or '.join(_WEIGHTS)} are needed"
            raise UnreadableSource(message)
        parts = _document(source, listed, _INDEX).get("weight_map") if _INDEX in listed else None
        if isinstance(parts, dict) and (missing := sorted({str(part) for part in parts.values()} - files.keys())):
            message = f"{source.name} lacks {', '.join(missing)}, which {_INDEX} names; put the whole model there"
            raise UnreadableSource(message)
        return cls(source, files, config)

    def shape(self) -> ModelShape:
        """Return what decides about memory.

        Raises:
            InvalidInput: config.json lacks a size.
        """
        return ModelShape.of_config(self.config, weight_bytes=sum(file.size for file in self.files.values()))

    def digest(self) -> str:
        """Return the SHA-256 of a single file, or over the names and digests of several.

        Raises:
            UnreadableSource: a file cannot be read.
            UnavailableService: the store does not answer.
        """
        digests = {name: _digest_of_file(self.source, name) for name in self.files}
        if len(digests) == 1:
            return next(iter(digests.values()))
        return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


def refused_by_vllm(target: JobTarget, weights: Weights, *, environment: Mapping[str, str]) -> str | None:
    """See `require_servable`; looked at where the target is declared, and again where its files are."""
    return require_servable(
        weights.config,
        model=target.model,
        quantization=target.quantization,
        max_model_len=target.max_model_len,
        allows_long=environment.get(ALLOW_LONG, "").strip().lower() in ("1", "true"),
    )


def is_weights(name: str) -> bool:
    """Tell files that the digest covers."""
    return any(fnmatchcase(name, pattern) for pattern in _WEIGHTS)


def is_needed(name: str) -> bool:
    """Tell files that an engine needs: weights, settings, tokenizer and chat template, no folder and nothing hidden."""
    patterns = (*_WEIGHTS, *_BESIDE_THEM)
    return "/" not in name and not name.startswith(".") and any(fnmatchcase(name, pattern) for pattern in patterns)


def _document(source: WeightSource, listed: Mapping[str, StoredFile], name: str) -> dict[str, Any]:
    """Read a JSON object."""
    found: object = None
    reason = "it is missing, or no file"
    if name in listed:
        try:
            found = json.loads(b"".join(source.blocks(name)))
            reason = "it holds no object"
        except ValueError as error:
            reason = str(error)
    if not isinstance(found, dict):
        message = f"{source.name} holds no model in Hugging Face layout: {name}: {reason}"
        raise UnreadableSource(message)
    return found


def _digest_of_file(source: WeightSource, name: str) -> str:
    digest = hashlib.sha256()
    for block in source.blocks(name):
        digest.update(block)
    return digest.hexdigest()
