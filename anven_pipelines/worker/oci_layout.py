"""A model in an OCI image layout: an artifact whose layers are the model's files, titled with their names.

`oras push --oci-layout FOLDER:TAG FILE...` and `oras copy --to-oci-layout` write such a folder. A model in the file
system of an image needs none of this: mounted as an image volume it is a local folder.

Source:
    https://github.com/opencontainers/image-spec/blob/main/image-layout.md and annotations.md.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

from anven_pipelines.domain.errors import CorruptArtifact, UnreadableSource
from anven_pipelines.worker.weights import LocalFolder, StoredFile, is_needed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

_INDEX: Final = "application/vnd.oci.image.index.v1+json"
_TITLE: Final = "org.opencontainers.image.title"
_DIGEST: Final = re.compile(r"sha256:([0-9a-f]{64})")
_DEEPEST: Final = 3  # indexes in indexes


class OciLayout(NamedTuple):
    """The layout, and the digest of the manifest where it holds several."""

    folder: Path
    revision: str | None

    @property
    def name(self) -> str:
        """What people are shown."""
        return f"oci://{self.folder}{f' at {self.revision}' if self.revision else ''}"

    def files(self) -> Mapping[str, StoredFile]:
        """See `WeightSource`.

        Raises:
            UnreadableSource: it is no such layout, or holds no such manifest.
            CorruptArtifact: the manifest is not what its digest says.
        """
        return {title: StoredFile(size, digest, digest) for title, (digest, size) in self._layers().items()}

    def blocks(self, file: str) -> Iterator[bytes]:
        """See `WeightSource`."""
        digest, _ = self._layers()[file]
        return LocalFolder(self.folder / "blobs" / "sha256", self.name).blocks(digest)

    def _layers(self) -> dict[str, tuple[str, int]]:
        """Return digest and size of each file that an engine needs."""
        found: dict[str, tuple[str, int]] = {}
        titles = []
        try:
            for layer in self._manifest()["layers"]:
                title = str((layer.get("annotations") or {}).get(_TITLE, "untitled"))
                titles.append(title)
                if is_needed(title) and found.setdefault(title, (_hex(layer), int(layer["size"])))[0] != _hex(layer):
                    self._refuse(f"two layers have the title {title}")
        except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            self._refuse(f"its manifest cannot be read: {error!r}", error)
        if not found:
            self._refuse(f"no layer's title is a model's file; there are {', '.join(titles) or 'none'}")
        return found

    def _manifest(self) -> Any:  # noqa: ANN401 - JSON of somebody else
        try:
            json.loads((self.folder / "oci-layout").read_bytes())["imageLayoutVersion"]
            listed = list(self._listed(json.loads((self.folder / "index.json").read_bytes())))
        except (OSError, KeyError, TypeError, ValueError) as error:
            self._refuse(f"it is no OCI image layout: {error!r}", error)
        chosen = {digest for digest in listed if self.revision in {None, f"sha256:{digest}"}}
        if len(chosen) != 1:
            there = ", ".join(f"sha256:{digest}" for digest in sorted(set(listed))) or "none"
            self._refuse(f"`revision` must name one of its manifests: {there}")
        return self._blob(chosen.pop())

    def _listed(self, index: Any, depth: int = 0) -> Iterator[str]:  # noqa: ANN401 - JSON of somebody else
        """Yield the digests of the manifests, those in inner indexes too."""
        for entry in index["manifests"]:
            if entry.get("mediaType") == _INDEX and depth < _DEEPEST:
                yield from self._listed(self._blob(_hex(entry)), depth + 1)
            else:
                yield _hex(entry)

    def _blob(self, digest: str) -> Any:  # noqa: ANN401 - JSON of somebody else
        data = (self.folder / "blobs" / "sha256" / digest).read_bytes()
        if (found := hashlib.sha256(data).hexdigest()) != digest:
            message = f"{self.name}: the blob sha256:{digest} has the digest {found}; copy the layout again"
            raise CorruptArtifact(message)
        return json.loads(data)

    def _refuse(self, why: str, cause: Exception | None = None) -> NoReturn:
        message = (
            f"{self.name} holds no model: {why}; a layout is needed whose layers are the model's files, as "
            "`oras push --oci-layout` writes it"
        )
        raise UnreadableSource(message) from cause


def _hex(descriptor: Mapping[str, Any]) -> str:
    if not (match := _DIGEST.fullmatch(descriptor["digest"])):
        message = f"the digest {descriptor['digest']!r} is not of the form sha256:..."
        raise ValueError(message)
    return match[1]
