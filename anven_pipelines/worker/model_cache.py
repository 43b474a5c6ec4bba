"""Models that were fetched to this machine, each in a folder that is there whole and verified, or not at all.

A folder is named by the digest of the weights and by the versions of the files beside them, so that one place's chat
template is not taken for another's. It is filled under a name of its own, a file at a time, and renamed when its
weights have the declared digest. A killed fetch leaves whole files, which the next one keeps. On a volume whose file
locks do not reach other machines two fetches may run at once: each writes temporary files of its own and makes the
same whole files of them, the first to end gives the folder its name, and the other finds it there.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NoReturn

from anven_pipelines.domain.canonical import digest_of
from anven_pipelines.domain.errors import CorruptArtifact, UnavailableService, UnreadableSource
from anven_pipelines.domain.model_fit import memory
from anven_pipelines.resources.durable_folder import flush_folder, sweep_strays
from anven_pipelines.worker.alone import alone
from anven_pipelines.worker.weights import LocalFolder, Weights, is_weights

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from anven_pipelines.worker.weights import StoredFile, WeightSource

_AT_ONCE: Final = 4  # files; one stream rarely fills the line to an object store
_TOLD_EVERY_S: Final = 5.0
_STILL_S: Final = 3600.0  # a fetch writes each file with every block; one that did not for so long was killed


def local_folder(source: WeightSource, *, digest: str, cache: Path, say: Callable[[str], None]) -> Path:
    """Return a folder of this machine whose weights have the digest: the source's own, or one that was fetched.

    Args:
        source: Where the model is.
        digest: Of its weights, as declared.
        cache: Folder of the fetched ones.
        say: Is told how far a fetch is.

    Raises:
        CorruptArtifact: the weights are others; nothing of them is kept.
        UnreadableSource: there is no such model, or only part of it.
        UnavailableService: the store does not answer, or the model finds no room here.
    """
    if isinstance(source, LocalFolder):
        _require(Weights.of(source).digest(), digest, of=source.name)
        return source.path
    listed = source.files()
    beside = {name: file.version for name, file in listed.items() if not is_weights(name)}
    folder = cache / f"{digest}-{digest_of(beside)[:16]}"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with alone(folder.with_suffix(".lock"), waiting=lambda: say(f"another worker fetches {source.name}; waiting")):
            seen = folder.stat().st_ino if folder.is_dir() else None
            if seen is not None:
                if _is_whole(folder, listed, digest):
                    return folder
                say(f"{folder} is damaged; fetching {source.name} again")
                _put_away(folder, seen)
                if _is_whole(folder, listed, digest):
                    return folder
            Weights.of(source)  # before it is fetched: is it a model, and all of it?
            _fill(folder, _Fetch(source, listed, folder.with_suffix(".partial"), say), digest)
    except OSError as error:
        is_left = folder.with_suffix(".partial").is_dir()
        raise _no_room(cache, listed, error.strerror or str(error), is_left=is_left) from error
    return folder


def _put_away(folder: Path, seen: int) -> None:
    """Remove a damaged folder, but not one that another machine, whose lock does not reach us, put in its place.

    Args:
        folder: Under its final name.
        seen: Its inode when it was found damaged.
    """
    away = folder.with_suffix(f".{uuid.uuid4().hex}.damaged")
    try:
        folder.rename(away)
    except FileNotFoundError:  # the other has put it away
        return
    if away.stat().st_ino == seen:
        shutil.rmtree(away)
        return
    try:
        away.rename(folder)
    except OSError:  # the other has one again
        shutil.rmtree(away, ignore_errors=True)


def _fill(folder: Path, fetch: _Fetch, digest: str) -> None:
    """Fetch, verify, and only then give the folder its name."""
    try:
        fetch.run()
        _require(Weights.in_folder(fetch.folder).digest(), digest, of=fetch.source.name)
        fetch.folder.rename(folder)
    except (OSError, CorruptArtifact, UnreadableSource) as error:
        if not _is_whole(folder, fetch.listed, digest):
            _give_up(fetch, error)
        shutil.rmtree(fetch.folder, ignore_errors=True)  # another was faster, which no lock of ours kept away
    for stray in folder.glob(".*.tmp"):  # they came along with the name; who writes them finds the folder whole
        stray.unlink(missing_ok=True)
    flush_folder(folder.parent)


def _give_up(fetch: _Fetch, error: Exception) -> NoReturn:
    """Raise the error, with nothing left of what is of no use; what another fetch may be at work on is left to it."""
    if isinstance(error, FileNotFoundError) or not fetch.folder.is_dir():
        message = (
            f"{fetch.folder} lost files while {fetch.source.name} was fetched into it, as where another fetch of it "
            "fails: see what the other one says, then run the step again"
        )
        raise UnavailableService(message) from error
    is_at_work = any(fetch.folder.glob(".*.tmp"))  # ours are gone by now
    if isinstance(error, CorruptArtifact) or (isinstance(error, OSError) and not is_at_work):
        shutil.rmtree(fetch.folder, ignore_errors=True)
    raise error


def _is_whole(folder: Path, listed: Mapping[str, StoredFile], digest: str) -> bool:
    """Whether the weights are the declared ones, and the files beside them as long as in the store."""
    try:
        beside = {name: (folder / name).stat().st_size for name in listed if not is_weights(name)}
        return beside == {name: listed[name].size for name in beside} and Weights.in_folder(folder).digest() == digest
    except (OSError, UnreadableSource):
        return False


def _require(found: str, digest: str, *, of: str) -> None:
    if found != digest:
        message = (
            f"{of} holds weights with the digest {found}, declared is {digest}; declare the new ones, or restore them"
        )
        raise CorruptArtifact(message)


def _no_room(cache: Path, listed: Mapping[str, StoredFile], reason: str, *, is_left: bool) -> UnavailableService:
    needed = sum(file.size for file in listed.values())
    kept = "what another fetch may be at work on is left to it" if is_left else "nothing half of it is kept"
    return UnavailableService(
        f"a model of {memory(needed)} cannot be kept in {cache}: {reason}; make room, or set ANVEN_MODEL_CACHE "
        f"to a folder with room; {kept}"
    )


@dataclass
class _Fetch:
    """One model on its way here."""

    source: WeightSource
    listed: Mapping[str, StoredFile]
    folder: Path
    say: Callable[[str], None]
    _stopped: threading.Event = field(default_factory=threading.Event)
    _telling: threading.Lock = field(default_factory=threading.Lock)
    _bytes: int = 0
    _needed: int = 0
    _told_at: float = 0.0

    def run(self) -> None:
        """Fetch the files that are not here yet.

        Raises:
            OSError: they find no room.
            CorruptArtifact: a file is not what its store says it is.
            UnreadableSource, UnavailableService: they cannot be read.
        """
        self.folder.mkdir(exist_ok=True)
        sweep_strays(self.folder, older_than_s=_STILL_S)
        missing = [name for name, file in self.listed.items() if not self._is_here(name, file)]
        needed, free = sum(self.listed[name].size for name in missing), shutil.disk_usage(self.folder).free
        if needed > free:
            raise OSError(None, f"{memory(needed)} are missing and {memory(free)} free")
        self._needed = needed
        began = self._told_at = time.monotonic()
        self.say(f"fetching {memory(needed)} in {len(missing)} files from {self.source.name} to {self.folder.parent}")
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            try:
                for _ in pool.map(self._fetch, missing):
                    pass
            except BaseException:
                self._stopped.set()
                pool.shutdown(cancel_futures=True)
                raise
        flush_folder(self.folder)
        self.say(f"fetched {memory(needed)} in {time.monotonic() - began:.1f} s")

    def _is_here(self, name: str, file: StoredFile) -> bool:
        path = self.folder / name
        return path.is_file() and path.stat().st_size == file.size

    def _fetch(self, name: str) -> None:
        """Make the file visible when all of it is on the disk."""
        temporary = self.folder / f".{name}.{uuid.uuid4().hex}.tmp"
        try:
            digest = self._write(name, temporary)
            if digest is not None:
                self._require(name, temporary.stat().st_size, digest)
                temporary.replace(self.folder / name)
        finally:
            temporary.unlink(missing_ok=True)

    def _write(self, name: str, path: Path) -> str | None:
        """Write what the source gives and return its digest; None where the fetch was stopped meanwhile."""
        digest = hashlib.sha256()
        with path.open("xb") as opened:
            for block in self.source.blocks(name):
                if self._stopped.is_set():
                    return None
                opened.write(block)
                digest.update(block)
                self._tell(len(block))
            opened.flush()
            os.fsync(opened.fileno())
        return digest.hexdigest()

    def _require(self, name: str, size: int, digest: str) -> None:
        file = self.listed[name]
        if size != file.size or file.sha256 not in {None, digest}:
            message = (
                f"{self.source.name}: {name} came with {size:,} of {file.size:,} bytes, its digest is {digest}; it "
                "changed meanwhile, or is damaged: put the model there again"
            )
            raise CorruptArtifact(message)

    def _tell(self, count: int) -> None:
        with self._telling:
            self._bytes += count
            if (now := time.monotonic()) - self._told_at >= _TOLD_EVERY_S:
                self._told_at = now
                self.say(f"{memory(self._bytes)} of {memory(self._needed)} fetched from {self.source.name}")
