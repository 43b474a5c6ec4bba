"""Models fetched to this machine: whole and verified, or not there."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import fsspec
import pytest

from anven_pipelines.domain.errors import CorruptArtifact, UnavailableService, UnreadableSource
from anven_pipelines.worker.model_cache import local_folder
from anven_pipelines.worker.weight_sources import source_of
from anven_pipelines.worker.weights import LocalFolder, StoredFile, Weights
from tests.model_places import PARTS, digest_of_parts, put_in_layout, put_model
from tests.worker_jobs import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from anven_pipelines.worker.weights import WeightSource

DIGEST = digest_of_parts()
NEEDED = {*PARTS, "config.json", "model.safetensors.index.json", "tokenizer.json", "chat_template.jinja"}


@dataclass
class Watched:
    """A source elsewhere that remembers what was read, and may be slow, or fail at a file when all others are here."""

    source: WeightSource
    fails_at: str = ""
    cache: Path | None = None
    slow_s: float = 0.0
    read: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.source.name

    def files(self) -> Mapping[str, StoredFile]:
        return self.source.files()

    def blocks(self, file: str) -> Iterator[bytes]:
        if file == self.fails_at:
            self._await_the_others()
            message = "the line is down"
            raise UnavailableService(message)
        self.read.append(file)
        time.sleep(self.slow_s)
        yield from self.source.blocks(file)

    def _await_the_others(self) -> None:
        assert self.cache is not None
        others = self.files().keys() - {self.fails_at}
        deadline = time.monotonic() + 60
        while not others <= {each.name for each in self.cache.glob("*.partial/*")}:
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return put_model(tmp_path / "model")


def watched(model: Path, **more: object) -> Watched:
    return Watched(LocalFolder(model, "s3://bucket/model"), **more)  # type: ignore[arg-type]


def fetched(source: WeightSource, cache: Path, *, digest: str = DIGEST) -> Path:
    return local_folder(source, digest=digest, cache=cache, say=lambda _: None)


def kept(cache: Path) -> list[str]:
    return sorted(each.name for each in cache.iterdir() if each.suffix != ".lock")


def test_a_model_is_fetched_whole_and_then_not_again(tmp_path: Path, model: Path) -> None:
    said: list[str] = []
    cache = tmp_path / "cache"
    folder = local_folder(watched(model), digest=DIGEST, cache=cache, say=said.append)
    assert {each.name for each in folder.iterdir()} == NEEDED
    assert all((folder / name).read_bytes() == (model / name).read_bytes() for name in NEEDED)
    assert kept(cache) == [folder.name]
    assert folder.name.startswith(DIGEST)
    assert [each.split(" ")[0] for each in said] == ["fetching", "fetched"]

    again = watched(model)
    assert fetched(again, cache) == folder
    assert again.read == []


def test_what_lies_on_this_machine_is_verified_and_not_copied(tmp_path: Path, model: Path) -> None:
    assert fetched(LocalFolder(model, "m"), tmp_path / "cache") == model
    assert not (tmp_path / "cache").exists()
    with pytest.raises(CorruptArtifact, match="declared is 000"):
        fetched(LocalFolder(model, "m"), tmp_path / "cache", digest="0" * 64)


@pytest.mark.parametrize("place", ["memory", "oci"])
def test_stores_and_layouts_are_fetched(tmp_path: Path, model: Path, place: str) -> None:
    weights = f"memory://{tmp_path.name}/m" if place == "memory" else f"oci://{tmp_path}/layout"
    put_in_layout(tmp_path / "layout", model)
    fsspec.filesystem("memory").put(str(model), f"/{tmp_path.name}/m", recursive=True)
    folder = fetched(source_of(weights, None, hub=tmp_path), tmp_path / "cache")
    assert {each.name for each in folder.iterdir()} == NEEDED
    assert Weights.in_folder(folder).digest() == DIGEST


def test_other_weights_are_refused_and_nothing_of_them_is_kept(tmp_path: Path, model: Path) -> None:
    (model / "model-1-of-3.safetensors").write_bytes(b"others")
    with pytest.raises(CorruptArtifact, match=f"s3://bucket/model holds .*, declared is {DIGEST}"):
        fetched(watched(model), tmp_path / "cache")
    assert kept(tmp_path / "cache") == []


def test_half_a_model_is_refused_before_it_is_fetched(tmp_path: Path, model: Path) -> None:
    (model / "model-1-of-3.safetensors").unlink()
    source = watched(model)
    with pytest.raises(UnreadableSource, match="lacks model-1"):
        fetched(source, tmp_path / "cache")
    assert not set(source.read) & PARTS.keys()


def test_what_came_before_the_line_went_down_is_not_fetched_again(tmp_path: Path, model: Path) -> None:
    last = "tokenizer.json"
    with pytest.raises(UnavailableService, match="the line is down"):
        fetched(watched(model, fails_at=last, cache=tmp_path / "cache"), tmp_path / "cache")
    (partial,) = kept(tmp_path / "cache")
    assert partial.endswith(".partial")
    assert {each.name for each in (tmp_path / "cache" / partial).iterdir()} == NEEDED - {last}
    source = watched(model)
    folder = fetched(source, tmp_path / "cache")
    assert {each.name for each in folder.iterdir()} == NEEDED
    assert set(source.read) == {last, "config.json", "model.safetensors.index.json"}  # two tell what the model is


@pytest.mark.parametrize("damaged", ["model-2-of-3.safetensors", "tokenizer.json", "config.json"])
@pytest.mark.parametrize("how", ["changed", "gone"])
def test_a_damaged_copy_is_fetched_again(tmp_path: Path, model: Path, damaged: str, how: str) -> None:
    folder = fetched(watched(model), tmp_path / "cache")
    (folder / damaged).unlink() if how == "gone" else (folder / damaged).write_bytes(b"x")
    assert fetched(watched(model), tmp_path / "cache") == folder
    assert (folder / damaged).read_bytes() == (model / damaged).read_bytes()


def test_another_chat_template_is_another_folder(tmp_path: Path, model: Path) -> None:
    folder = fetched(watched(model), tmp_path / "cache")
    (model / "chat_template.jinja").write_text("{{ other }}")
    other = fetched(watched(model), tmp_path / "cache")
    assert other != folder
    assert (other / "chat_template.jinja").read_text() == "{{ other }}"
    assert (folder / "chat_template.jinja").read_text() == "{{ messages }}"


def test_a_blob_that_is_not_what_the_layout_says_is_refused(tmp_path: Path, model: Path) -> None:
    put_in_layout(tmp_path / "layout", model)
    (blob,) = (each for each in (tmp_path / "layout/blobs/sha256").iterdir() if each.read_bytes() == b"{{ messages }}")
    blob.write_bytes(b"{{ massages }}")
    with pytest.raises(CorruptArtifact, match=r"chat_template\.jinja came with 14 of 14 bytes, its digest is"):
        fetched(source_of(f"oci://{tmp_path}/layout", None, hub=tmp_path), tmp_path / "cache")
    assert kept(tmp_path / "cache") == []


def test_two_at_once_fetch_it_once(tmp_path: Path, model: Path) -> None:
    sources = [watched(model, slow_s=0.2) for _ in range(2)]
    said: list[str] = []
    found: list[Path] = []

    def fetch(source: Watched) -> None:
        found.append(local_folder(source, digest=DIGEST, cache=tmp_path / "cache", say=said.append))

    threads = [threading.Thread(target=fetch, args=[source]) for source in sources]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert len(found) == 2
    assert sum("model-1-of-3.safetensors" in source.read for source in sources) == 1
    assert any("another worker fetches s3://bucket/model; waiting" in each for each in said)


def test_a_machine_that_no_lock_keeps_away_may_be_faster(tmp_path: Path, model: Path) -> None:
    whole = fetched(watched(model), tmp_path / "elsewhere")

    class Raced(Watched):
        """Another machine ends the same fetch while this one is at its last file."""

        def blocks(self, file: str) -> Iterator[bytes]:
            yield from super().blocks(file)
            if file == "tokenizer.json":
                (partial,) = (tmp_path / "cache").glob("*.partial")
                whole.rename(partial.with_suffix(""))

    folder = fetched(Raced(LocalFolder(model, "s3://bucket/model")), tmp_path / "cache")
    assert Weights.in_folder(folder).digest() == DIGEST
    assert kept(tmp_path / "cache") == [folder.name]


@dataclass
class Held(Watched):
    """It reads its last file when it is let go."""

    reached: threading.Event = field(default_factory=threading.Event)
    let_go: threading.Event = field(default_factory=threading.Event)

    def blocks(self, file: str) -> Iterator[bytes]:
        if file == "tokenizer.json":
            self.reached.set()
            assert self.let_go.wait(60)
        yield from super().blocks(file)


class Unlocked:
    """Two fetches at once whose locks do not reach each other, each with one file half written."""

    def __init__(self, model: Path, cache: Path) -> None:
        self.fetches = [Held(LocalFolder(model, "s3://bucket/model")) for _ in range(2)]
        self.outcomes: dict[int, Path | Exception] = {}
        self._cache = cache
        self._threads = [threading.Thread(target=self._fetch, args=[at]) for at in range(2)]
        for at in range(2):
            self._threads[at].start()
            assert self.fetches[at].reached.wait(60)
            (lock,) = cache.glob("*.lock")
            lock.unlink()  # the other one makes a lock of its own

    def _fetch(self, at: int) -> None:
        try:
            self.outcomes[at] = fetched(self.fetches[at], self._cache)
        except UnavailableService as error:
            self.outcomes[at] = error

    def end(self, at: int) -> None:
        self.fetches[at].let_go.set()
        self._threads[at].join()


@pytest.mark.parametrize("faster", [0, 1])
def test_two_that_see_no_lock_of_each_other_both_have_the_model(tmp_path: Path, model: Path, faster: int) -> None:
    both = Unlocked(model, tmp_path / "cache")
    both.end(faster)
    both.end(1 - faster)
    assert both.outcomes[0] == both.outcomes[1]
    (name,) = kept(tmp_path / "cache")
    folder = tmp_path / "cache" / name
    assert both.outcomes[0] == folder
    assert {each.name for each in folder.iterdir()} == NEEDED
    assert Weights.in_folder(folder).digest() == DIGEST


def test_who_loses_its_files_to_another_fetch_is_not_told_to_make_room(tmp_path: Path, model: Path) -> None:
    both = Unlocked(model, tmp_path / "cache")
    (partial,) = (tmp_path / "cache").glob("*.partial")
    while partial.exists():  # as one does that found other weights; names still change in it meanwhile
        shutil.rmtree(partial, ignore_errors=True)
    for at in range(2):
        both.end(at)
    for error in both.outcomes.values():
        assert isinstance(error, UnavailableService)
        assert str(error).startswith(f"{partial} lost files while s3://bucket/model was fetched")


def test_who_finds_no_room_leaves_another_fetch_its_files(tmp_path: Path, model: Path) -> None:
    cache = tmp_path / "cache"
    both = Unlocked(model, cache)
    (partial,) = cache.glob("*.partial")
    (partial / "tokenizer.json").mkdir()  # neither can give its file this name
    both.end(0)
    assert "cannot be kept" in str(both.outcomes[0])
    assert str(both.outcomes[0]).endswith("what another fetch may be at work on is left to it")
    (partial / "tokenizer.json").rmdir()
    both.end(1)
    assert {each.name for each in (cache / str(both.outcomes[1])).iterdir()} == NEEDED


def test_a_volume_without_locks_is_named(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refused)
    with pytest.raises(UnavailableService, match=r"\.lock cannot be locked \(No locks available\).*mount its volume"):
        fetched(watched(model), tmp_path / "cache")


def test_what_nobody_writes_to_any_more_makes_room_before_the_next_fetch(tmp_path: Path, model: Path) -> None:
    whole = fetched(watched(model), tmp_path / "elsewhere")
    stray = tmp_path / "cache" / f"{whole.name}.partial" / ".tokenizer.json.0.tmp"
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"{")
    os.utime(stray, (time.time() - 3700,) * 2)
    with pytest.raises(UnavailableService, match="the line is down"):
        fetched(watched(model, fails_at="tokenizer.json", cache=tmp_path / "cache"), tmp_path / "cache")
    assert not stray.exists()


# The kernel refuses to let a file grow past the limit, as it does on a full disk.
FULL_DISK = """
import resource, sys
from pathlib import Path
from anven_pipelines.domain.errors import UnavailableService
from anven_pipelines.worker.model_cache import local_folder
from anven_pipelines.worker.weight_sources import source_of

_, weights, digest, cache = sys.argv
resource.setrlimit(resource.RLIMIT_FSIZE, (5_001, 5_001))
try:
    local_folder(source_of(weights, None, hub=Path()), digest=digest, cache=Path(cache), say=lambda _: None)
except UnavailableService as error:
    print(error)
"""


def test_a_disk_that_fills_up_leaves_nothing_and_one_clear_error(tmp_path: Path, model: Path) -> None:
    put_in_layout(tmp_path / "layout", model)
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, f"oci://{tmp_path}/layout", DIGEST, str(tmp_path / "cache")],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert f"MiB cannot be kept in {tmp_path}/cache: {os.strerror(errno.EFBIG)}; make room" in done.stdout
    assert "Traceback" not in done.stderr
    assert kept(tmp_path / "cache") == []


def test_a_model_larger_than_the_disk_is_refused_before_it_is_fetched(tmp_path: Path, model: Path) -> None:
    @dataclass
    class Huge(Watched):
        def files(self) -> Mapping[str, StoredFile]:
            found = dict(super().files())
            return found | {"model-3-of-3.safetensors": StoredFile(1 << 60, "1")}

    source = Huge(LocalFolder(model, "s3://bucket/model"))
    with pytest.raises(
        UnavailableService, match=r"a model of 1,073,741,824\.00 GiB cannot be kept.*GiB free; make room"
    ):
        fetched(source, tmp_path / "cache")
    assert not set(source.read) & PARTS.keys()
    assert kept(tmp_path / "cache") == []


def test_a_cache_that_cannot_be_made_is_one_clear_error(tmp_path: Path, model: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(
        UnavailableService, match=r"cannot be kept in .*/file/cache: Not a directory; make room, or set"
    ):
        fetched(watched(model), tmp_path / "file" / "cache")


def test_what_is_left_of_a_killed_fetch_is_used_and_its_half_files_are_not(tmp_path: Path, model: Path) -> None:
    whole = fetched(watched(model), tmp_path / "elsewhere")
    partial = tmp_path / "cache" / f"{whole.name}.partial"
    partial.mkdir(parents=True)
    first = "model-1-of-3.safetensors"
    (partial / first).write_bytes(PARTS[first])
    (partial / ".tokenizer.json.0.tmp").write_bytes(b"{")
    source = watched(model)
    folder = fetched(source, tmp_path / "cache")
    assert first not in source.read
    assert {each.name for each in folder.iterdir()} == NEEDED
    assert json.loads((folder / "tokenizer.json").read_text()) == {}


@pytest.mark.parametrize("overtakes", [True, False])
def test_a_damaged_copy_that_another_machine_mends_too_is_not_taken_from_it(
    tmp_path: Path, model: Path, *, overtakes: bool
) -> None:
    whole = fetched(watched(model), tmp_path / "elsewhere")
    folder = fetched(watched(model), tmp_path / "cache")
    (folder / "config.json").write_text("x")

    def say(line: str) -> None:
        """Be overtaken, right after the copy was found damaged, by a machine that no lock keeps away."""
        if "is damaged" in line:
            shutil.rmtree(folder)
            if overtakes:
                whole.rename(folder)

    source = watched(model)
    assert local_folder(source, digest=DIGEST, cache=tmp_path / "cache", say=say) == folder
    assert Weights.in_folder(folder).digest() == DIGEST
    assert kept(tmp_path / "cache") == [folder.name]
    assert bool(source.read) != overtakes
