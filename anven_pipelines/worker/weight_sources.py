"""From what a migration file says of its weights to where they lie.

| written | where the files are |
|---|---|
| an absolute path, or file:// | that folder of the worker's machine |
| hf://ORG/NAME | Hugging Face's cache of the worker's machine, in the snapshot of `revision`; never downloaded |
| oci:///folder | an OCI image layout of the worker's machine, in the layers of an artifact |
| s3:// and all else that fsspec knows | that folder of the store, with the credentials of the environment |

Source:
    https://huggingface.co/docs/huggingface_hub/guides/manage-cache for the layout of the cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, NoReturn

from fsspec.implementations.local import LocalFileSystem

from anven_pipelines.domain.errors import InvalidInput, UnavailableService, UnreadableSource
from anven_pipelines.resources.durable_folder import opened
from anven_pipelines.spec_target import require_pin
from anven_pipelines.worker.oci_layout import OciLayout
from anven_pipelines.worker.weights import BLOCK, LocalFolder, StoredFile, is_needed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from anven_pipelines.worker.weights import WeightSource

HUGGING_FACE: Final = "hf://"
OCI: Final = "oci://"
_OF_THIS_MACHINE: Final = ("/", "file://", "local://", HUGGING_FACE, OCI)


class ModelCaches(NamedTuple):
    """Folders of this machine that hold models.

    Attributes:
        models: What we fetched.
        hub: Hugging Face's own cache, which is only read.
    """

    models: Path
    hub: Path

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> ModelCaches:
        """Find them as `ANVEN_MODEL_CACHE` and Hugging Face's variables say."""
        own = Path(environment.get("XDG_CACHE_HOME") or Path(environment.get("HOME") or Path.home()) / ".cache")
        hugging_face = Path(environment.get("HF_HOME") or own / "huggingface")
        return cls(
            models=Path(environment.get("ANVEN_MODEL_CACHE") or own / "anven_pipelines" / "models").absolute(),
            hub=Path(environment.get("HF_HUB_CACHE") or hugging_face / "hub"),
        )


def is_on_worker(weights: str) -> bool:
    """Tell weights that only the worker's machine sees; all others can be looked at from anywhere."""
    return weights.startswith(_OF_THIS_MACHINE)


def source_of(weights: str, revision: str | None, *, hub: Path) -> WeightSource:
    """Return where the files are; stores are not asked yet.

    Args:
        weights: As in a migration file.
        revision: As in a migration file.
        hub: Hugging Face's cache.

    Raises:
        InvalidInput: no place is named so, or the revision pins nothing.
        UnreadableSource: Hugging Face's cache does not hold that revision.
        UnavailableService: the package for such a store is missing.
    """
    try:
        require_pin(weights, revision)
    except ValueError as error:
        message = f"weights: {error}"
        raise InvalidInput(message) from error
    if weights.startswith("/"):
        return LocalFolder(Path(weights), weights)
    if weights.startswith(HUGGING_FACE):
        return _snapshot(weights, str(revision), hub)
    if weights.startswith(OCI):
        return OciLayout(Path(weights.removeprefix(OCI)), revision)
    files, root = opened(weights, {}, what=weights, needed="an absolute path, s3://, hf:// or oci://")
    if isinstance(files, LocalFileSystem):
        return LocalFolder(Path(root), weights)
    return StoreFolder(weights, files, root)


@dataclass(frozen=True)
class StoreFolder:
    """A folder of an object store.

    Attributes:
        name: Its URL.
        system: fsspec's file system.
        root: The folder's path in it.
    """

    name: str
    system: Any  # fsspec ships no types
    root: str

    def files(self) -> Mapping[str, StoredFile]:
        """See `WeightSource`: one listing.

        Raises:
            UnreadableSource: there is no such folder, or the store tells no sizes.
            UnavailableService: the store does not answer.
        """
        try:
            self.system.invalidate_cache()
            entries = self.system.ls(self.root, detail=True)
        except FileNotFoundError as error:
            message = f"{self.name} does not exist; name the folder in which config.json lies"
            raise UnreadableSource(message) from error
        except Exception as error:  # noqa: BLE001 - each fsspec backend has its own error tree
            self._out_of_reach("listed", error)
        paths = {str(entry["name"]).rpartition("/"): entry for entry in entries if entry["type"] == "file"}
        # An object's own name is listed as a folder with itself in it.
        named = {name: entry for (folder, _, name), entry in paths.items() if folder.strip("/") == self.root.strip("/")}
        needed = {name: entry for name, entry in named.items() if is_needed(name)}
        if unsized := sorted(name for name, entry in needed.items() if entry.get("size") is None):
            message = (
                f"{self.name} tells no size of {', '.join(unsized)}, without which no fetch is known to be whole; put "
                "the model on an object store, or into a folder of the worker's machine"
            )
            raise UnreadableSource(message)
        return {name: StoredFile(int(entry["size"]), _version(entry)) for name, entry in needed.items()}

    def blocks(self, file: str) -> Iterator[bytes]:
        """See `WeightSource`: one request a block.

        Raises:
            UnavailableService: the store does not answer, or the file went away.
        """
        try:
            with self.system.open(f"{self.root}/{file}", "rb", block_size=BLOCK, cache_type="none") as reader:
                while block := reader.read(BLOCK):
                    yield block
        except Exception as error:  # noqa: BLE001 - as above
            self._out_of_reach(f"read ({file})", error)

    def _out_of_reach(self, what: str, error: Exception) -> NoReturn:
        message = (
            f"{self.name} cannot be {what}: {type(error).__name__}: {error}; check the address, the network and the "
            "credentials in the environment"
        )
        raise UnavailableService(message) from error


def _version(entry: Mapping[str, Any]) -> str:
    """Return what changes with a file's bytes: the store's own tag, else its size and time."""
    tag = next((entry[name] for name in ("ETag", "etag", "md5Hash", "content_md5") if entry.get(name)), None)
    times = [entry[name] for name in ("LastModified", "last_modified", "mtime", "created") if entry.get(name)]
    return str(tag or (entry["size"], times))


def _snapshot(weights: str, revision: str, hub: Path) -> LocalFolder:
    """Return the revision's folder in Hugging Face's cache, whose files are links into it."""
    model = weights.removeprefix(HUGGING_FACE)
    folder = hub / f"models--{model.replace('/', '--')}" / "snapshots" / revision
    if not folder.is_dir():
        message = (
            f"{weights} at {revision} is not in the Hugging Face cache {hub}, and nothing is downloaded here; "
            f"run `hf download {model} --revision {revision}` where the network allows it, and set HF_HUB_CACHE to it"
        )
        raise UnreadableSource(message)
    return LocalFolder(folder, f"{weights} at {revision}")
