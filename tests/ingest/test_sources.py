from __future__ import annotations

from pathlib import Path

import fsspec
import pytest

from anven_pipelines.domain.errors import UnreadableSource
from anven_pipelines.ingest.sources import list_files, public_name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("logs/2026-11-20.jsonl", "logs/2026-11-19.jsonl.gz", "logs/old/2025-01-01.jsonl", "logs/notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"{}\n")
    return tmp_path


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (["logs/2026-11-20.jsonl"], ["logs/2026-11-20.jsonl"]),
        (["logs/*.jsonl*"], ["logs/2026-11-19.jsonl.gz", "logs/2026-11-20.jsonl"]),
        (["logs/2026-11-2?.jsonl"], ["logs/2026-11-20.jsonl"]),
        (["logs/**/*.jsonl"], ["logs/2026-11-20.jsonl", "logs/old/2025-01-01.jsonl"]),
        (["logs/*.jsonl", "logs/2026-11-20.jsonl", "./logs/2026*.jsonl"], ["logs/2026-11-20.jsonl"]),
    ],
)
def test_relative_patterns_name_files_as_seen_from_the_base(
    folder: Path, patterns: list[str], names: list[str]
) -> None:
    assert [file.name for file in list_files(patterns, base=str(folder))] == names


def test_a_pattern_may_climb_out_of_the_base(folder: Path) -> None:
    (folder / "migrations").mkdir()
    files = list_files(["../logs/*.gz"], base=str(folder / "migrations"))
    assert [(file.name, file.day) for file in files] == [("../logs/2026-11-19.jsonl.gz", "2026-11-19")]
    assert Path(files[0].url).read_bytes() == b"{}\n"


def test_names_are_the_same_wherever_the_folder_lies(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "logs").mkdir()
    (elsewhere / "logs" / "2026-11-20.jsonl").write_bytes(b"{}\n")
    here, there = (list_files(["logs/*.jsonl"], base=str(base)) for base in (folder, elsewhere))
    assert [file.name for file in here] == [file.name for file in there]
    assert here[0].url != there[0].url


def test_a_file_whose_name_holds_wildcards_is_taken_as_it_stands(tmp_path: Path) -> None:
    (tmp_path / "log[1].jsonl").write_bytes(b"{}\n")
    assert [file.name for file in list_files(["log[1].jsonl"], base=str(tmp_path))] == ["log[1].jsonl"]


def test_absolute_paths_and_urls_name_files_in_full(folder: Path) -> None:
    fsspec.filesystem("memory").pipe("/bucket/dt=2026-11-20/a.jsonl", b"{}\n")
    path = str(folder / "logs" / "2026-11-20.jsonl")
    files = list_files(["memory://bucket/*/a.jsonl", path, f"file://{path}"], base="/nowhere")
    assert [file.name for file in files] == [path, f"file://{path}", "memory:///bucket/dt=2026-11-20/a.jsonl"]


def test_a_link_to_a_file_is_a_file(folder: Path) -> None:
    (folder / "latest.jsonl").symlink_to(folder / "logs" / "2026-11-20.jsonl")
    assert [file.name for file in list_files(["*.jsonl"], base=str(folder))] == ["latest.jsonl"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("logs/2026-12-*.jsonl", "logs/2026-12-.*: matches no file; .*relative patterns start at"),
        ("logs/absent.jsonl", "logs/absent.jsonl: does not exist; .*put the file there"),
        ("logs", r"logs: is a folder; files are needed: write logs/\*.jsonl"),
        ("logs/*", None),
        ("ol?", "matches no file"),
        ("nosuch://bucket/a.jsonl", "nosuch://bucket/a.jsonl: cannot be read .*use a path or an fsspec URL"),
    ],
)
def test_a_pattern_that_names_no_file_says_how_to_mend_it(folder: Path, pattern: str, message: str | None) -> None:
    if message is None:
        assert len(list_files([pattern], base=str(folder))) == 3
        return
    with pytest.raises(UnreadableSource, match=message):
        list_files([pattern], base=str(folder))


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://user:secret@host/logs/a.jsonl?token=secret", "https://host/logs/a.jsonl"),
        ("ftp://user:secret@host/a.jsonl", "ftp://host/a.jsonl"),
        ("s3://bucket/log-?.jsonl", "s3://bucket/log-?.jsonl"),
        ("logs/a@b.jsonl", "logs/a@b.jsonl"),
    ],
)
def test_a_name_shows_no_credentials(url: str, name: str) -> None:
    assert public_name(url) == name
