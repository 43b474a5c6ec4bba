"""The log sources that migrations declare: each distinct one is listed and read once."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import fsspec.core

from anven_pipelines.domain.canonical import digest_of
from anven_pipelines.domain.errors import UnreadableSource
from anven_pipelines.ingest.sources import LogFile, list_files, reading

if TYPE_CHECKING:
    from collections.abc import Iterable

    from anven_pipelines.spec import Legacy
    from anven_pipelines.spec_values import LogFormat


class LogSource(NamedTuple):
    """The files of one declared source; two workloads that declare the same share it."""

    key: str
    log_format: LogFormat
    files: list[LogFile]


def source_key(legacy: Legacy, folder: str) -> str:
    """Return the name under which a source's parts are labelled.

    Args:
        legacy: What the migration declares.
        folder: Where its relative paths start.
    """
    return digest_of([folder, sorted(legacy.logs), legacy.format])[:16]


def log_source(legacy: Legacy, folder: str) -> LogSource:
    """List a declared source.

    Raises:
        UnreadableSource: a pattern matches no file or cannot be listed.
    """
    return LogSource(source_key(legacy, folder), legacy.format, list_files(legacy.logs, base=folder))


def readable_sources(declared: Iterable[tuple[Legacy, str]]) -> tuple[list[LogSource], dict[str, str]]:
    """List every distinct source; one that cannot be listed leaves the others alone.

    Args:
        declared: The legacy section and the folder of each migration.

    Returns:
        The sources, and by source key why the others cannot be read.
    """
    distinct = {source_key(legacy, folder): (legacy, folder) for legacy, folder in declared}
    sources, unreadable = [], {}
    for key, (legacy, folder) in distinct.items():
        try:
            sources.append(log_source(legacy, folder))
        except UnreadableSource as error:
            unreadable[key] = str(error)
    return sources, unreadable


def file_version(file: LogFile) -> str:
    """Return what changes when the file's content does, without reading it: entity tag, or size and time.

    Raises:
        UnreadableSource: the file is gone, or its store cannot be reached.

    Source:
        RFC 9110, section 8.8 (validators); fsspec's `info`, whose fields differ between stores.
    """
    with reading(file.name, file.url):
        system, path = fsspec.core.url_to_fs(file.url)
        info = system.info(path)
    tag = info.get("ETag") or info.get("etag")
    return str(tag) if tag else f"{info.get('size')}/{info.get('mtime') or info.get('LastModified')}"
