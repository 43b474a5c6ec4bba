"""A folder, local or on an object store, in which every file is whole, durable or absent.

Local files are written to a temporary file in the same folder, flushed to the disk and renamed over the
final name, and the rename is flushed too. Object stores take one PUT, which S3 makes visible at once or not
at all. What a killed process leaves behind is a temporary file that no reader sees and that is swept when old.
"""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from anven_pipelines.domain.errors import InvalidInput, UnavailableService

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

STRAY_AFTER_SECONDS: Final = 24 * 3600.0
"""Age after which no writer can still be at work on a temporary file."""

_LONGEST_NAME: Final = 120  # of the 255 bytes that file systems allow, to leave room for suffixes
_SECRET_OPTIONS: Final = frozenset({"key", "secret", "token", "password", "account_key", "sas_token", "username"})


def path_name(name: str) -> str:
    """Return a name that is safe as one component of a path, different for each name.

    Odd characters are percent-encoded; a long name keeps its beginning and gets its digest behind a `~`,
    which never stands in an encoded name. The empty name becomes `~`.
    """
    quoted = quote(name, safe="").replace("~", "%7E")
    if quoted.startswith("."):
        quoted = f"%2E{quoted[1:]}"
    if len(quoted) > _LONGEST_NAME:
        return f"{quoted[:64]}~{hashlib.sha256(name.encode()).hexdigest()[:32]}"
    return quoted or "~"


class DurableFolder:
    """Files under one root, named by paths relative to it with `/` between components."""

    def __init__(self, url: str, storage_options: Mapping[str, Any]) -> None:
        """Open the folder; nothing is written yet.

        Args:
            url: Local path or fsspec URL.
            storage_options: Options of the fsspec file system, without credentials.

        Raises:
            InvalidInput: the options hold a credential, or no file system knows the URL's protocol.
            UnavailableService: the file system's package is missing or it cannot be opened.
        """
        _refuse_secrets(storage_options)
        self._files, self._root = opened(
            url, storage_options, what=f"the artifact store's url {url!r}", needed="a local path or fsspec URL"
        )
        self._is_local = isinstance(self._files, LocalFileSystem)
        self._swept: set[Path] = set()

    def location(self, uri: str) -> str:
        """Return where the file is, for people: a local path or a full URL."""
        path = self._path(uri)
        return path if self._is_local else str(self._files.unstrip_protocol(path))

    def local_path(self, uri: str) -> Path | None:
        """Return the file's path where the folder is local, else None."""
        return Path(self._path(uri)) if self._is_local else None

    def write(self, uri: str, data: bytes) -> None:
        """Make the file visible with exactly these bytes, replacing an older one.

        Raises:
            UnavailableService: the bytes could not be written; nothing of them is visible.
        """
        with self._reaching(uri, f"write {len(data):,} bytes"):
            if self._is_local:
                self._write_local(Path(self._path(uri)), data)
            else:
                self._files.pipe_file(self._path(uri), data)

    def read(self, uri: str) -> bytes | None:
        """Return the file's bytes; None where there is no such file."""
        with self._reaching(uri, "read"):
            try:
                return bytes(self._files.cat_file(self._path(uri)))
            except (FileNotFoundError, IsADirectoryError):
                return None

    def read_all(self, uris: Collection[str]) -> dict[str, bytes]:
        """Return the bytes of all files that exist; object stores are asked for many at once."""
        if not uris:
            return {}
        with self._reaching(next(iter(uris)), f"read {len(uris):,} files beside each other"):
            contents = self._files.cat_ranges([self._path(uri) for uri in uris], None, None, on_error="return")
            for content in contents:
                if isinstance(content, Exception) and not isinstance(content, FileNotFoundError):
                    raise content
        return {uri: content for uri, content in zip(uris, contents, strict=True) if isinstance(content, bytes)}

    def download(self, uri: str, path: Path) -> bool:
        """Copy the file to a local path in chunks; False where there is no such file."""
        with self._reaching(uri, "download"):
            try:
                self._files.get_file(self._path(uri), str(path))
            except (FileNotFoundError, IsADirectoryError):
                return False
        return True

    def size(self, uri: str) -> int | None:
        """Return the file's size in bytes; None where there is no such file."""
        with self._reaching(uri, "look up"):
            self._forget_listings()
            try:
                return int(self._files.size(self._path(uri)))
            except (FileNotFoundError, IsADirectoryError):
                return None

    def names(self, folder: str) -> list[str]:
        """Return the sorted names of the files that stand directly in a folder, temporary ones left out."""
        with self._reaching(folder, "list"):
            self._forget_listings()
            try:
                entries = self._files.ls(self._path(folder), detail=True)
            except FileNotFoundError:
                return []
        found = (str(entry["name"]).rsplit("/", 1)[-1] for entry in entries if entry["type"] == "file")
        return sorted(name for name in found if name and not name.startswith("."))

    def rename(self, uri: str, new_uri: str) -> None:
        """Give the file another name; nothing happens where it is gone."""
        with self._reaching(uri, "rename"):
            try:
                self._files.mv(self._path(uri), self._path(new_uri))
            except FileNotFoundError:
                return

    def remove(self, uri: str) -> None:
        """Remove the file; nothing happens where it is gone. After a power cut it may be there again."""
        with self._reaching(uri, "remove"):
            try:
                self._files.rm_file(self._path(uri))
            except FileNotFoundError:
                return

    def _path(self, uri: str) -> str:
        return f"{self._root}/{uri}"

    def _forget_listings(self) -> None:
        """Object stores cache listings per process; another process may have written since."""
        self._files.invalidate_cache()

    def _write_local(self, path: Path, data: bytes) -> None:
        _make_folders(path.parent)
        self._sweep(path.parent)
        temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        flush_folder(path.parent)

    def _sweep(self, folder: Path) -> None:
        """Remove what killed writers left behind, once per folder and process."""
        if folder in self._swept:
            return
        self._swept.add(folder)
        sweep_strays(folder, older_than_s=STRAY_AFTER_SECONDS)

    @contextmanager
    def _reaching(self, uri: str, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            message = (
                f"cannot {what} at {self.location(uri)}: {reason}; check that the artifact store is reachable, "
                "that its credentials allow it and that space is left, then run the step again: nothing partial is kept"
            )
            raise UnavailableService(message) from error


def opened(url: str, storage_options: Mapping[str, Any], *, what: str, needed: str) -> tuple[Any, str]:
    """Return the file system of a URL, which fsspec leaves untyped, and the path in it.

    Args:
        url: Local path or fsspec URL.
        storage_options: Options of the fsspec file system.
        what: Names the URL in an error.
        needed: What would be usable, for an error.

    Raises:
        InvalidInput: no file system knows the URL's protocol.
        UnavailableService: the file system's package is missing, or its server does not answer.
    """
    try:
        files, root = url_to_fs(url, **storage_options)
    except ValueError as error:
        message = f"{what} is not usable ({error}); {needed} is needed"
        raise InvalidInput(message) from error
    except ImportError as error:
        is_s3 = url.startswith(("s3://", "s3a://"))
        mend = "install anven-pipelines[s3]" if is_s3 else "install it beside anven-pipelines"
        message = f"{url} needs a package that is not installed ({error}); {mend}"
        raise UnavailableService(message) from error
    except OSError as error:  # some connect at once, such as ftp
        message = f"{url} cannot be reached ({error}); check the address and the network"
        raise UnavailableService(message) from error
    return files, str(root)


def _refuse_secrets(storage_options: Mapping[str, Any]) -> None:
    """Run configuration is shown in the UI: a credential must not stand in it."""
    if found := sorted(_SECRET_OPTIONS & storage_options.keys()):
        message = (
            f"storage_options holds {', '.join(found)}; credentials are taken from the environment only "
            "(such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY): remove them from the configuration"
        )
        raise InvalidInput(message)


def _make_folders(folder: Path) -> None:
    """Create the folder and its missing parents so that they survive a power cut."""
    if folder.is_dir():
        return
    _make_folders(folder.parent)
    folder.mkdir(exist_ok=True)
    flush_folder(folder.parent)


def sweep_strays(folder: Path, *, older_than_s: float) -> None:
    """Remove the temporary files that nobody has written to for so long."""
    oldest = time.time() - older_than_s
    for stray in folder.glob(".*.tmp"):
        try:
            if stray.stat().st_mtime < oldest:
                stray.unlink()
        except FileNotFoundError:
            continue  # another process swept it first


def flush_folder(folder: Path) -> None:
    """Make names created in the folder durable; a flushed file whose name is lost is lost."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
