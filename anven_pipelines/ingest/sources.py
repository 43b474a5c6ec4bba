"""From declared patterns to log files: local paths, globs and fsspec URLs."""

from __future__ import annotations

import posixpath
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlsplit

import fsspec.core

from anven_pipelines.domain.errors import UnreadableSource
from anven_pipelines.domain.request_log import log_day

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_WILDCARDS: Final = frozenset("*?[")


class LogFile(NamedTuple):
    """One log file.

    Attributes:
        url: Where it is opened: an absolute path or an fsspec URL.
        name: How rows name it: as seen from the declared pattern, so that it is the same on every machine.
        day: Its partition: the day named in its path, else 'undated'.
    """

    url: str
    name: str
    day: str


def list_files(patterns: Sequence[str], *, base: str) -> list[LogFile]:
    """Return the files that the patterns name, sorted by name; a file that two patterns name is listed once.

    Args:
        patterns: Paths, globs (`*`, `**`, `?`, `[...]`) or fsspec URLs such as s3://logs/llm/*.jsonl.gz.
        base: Folder or URL at which relative patterns start.

    Raises:
        UnreadableSource: a pattern matches no file, or its store cannot be reached.
    """
    found: dict[str, LogFile] = {}
    for pattern in patterns:
        for file in _matches(pattern, base):
            found.setdefault(posixpath.normpath(file.url), file)
    return sorted(found.values(), key=lambda file: (file.name, file.url))


@contextmanager
def reading(name: str, url: str) -> Iterator[None]:
    """Turn whatever a file system raises into an UnreadableSource that names the file and how to mend it.

    The URL may hold credentials and is never shown: the name takes its place.
    """
    try:
        yield
    except UnreadableSource:
        raise
    except Exception as error:  # each fsspec backend has its own error tree
        detail = str(error).replace(url, name)
        message = f"{name}: cannot be read ({type(error).__name__}: {detail}); {_remedy(error)}"
        raise UnreadableSource(message) from error


def public_name(url: str) -> str:
    """Return a URL without what may be a credential: user information, and the query of an HTTP URL."""
    if "://" not in url:
        return url
    protocol, rest = url.split("://", maxsplit=1)
    host, slash, path = rest.partition("/")
    if protocol in {"http", "https"}:
        path = urlsplit(f"//host/{path}").path.removeprefix("/")
    return f"{protocol}://{host.rpartition('@')[2]}{slash}{path}"


def _matches(pattern: str, base: str) -> list[LogFile]:
    absolute = "://" in pattern or posixpath.isabs(pattern)
    place = pattern if absolute else f"{base.rstrip('/')}/{pattern}"
    with reading(public_name(pattern), pattern):
        system, path = fsspec.core.url_to_fs(place)
        system.invalidate_cache()  # a sensor's process lists again and again, and must see what others have written
        paths = _files(system, path)
        root = None if absolute else fsspec.core.url_to_fs(base)[1]
        if not paths:
            message = f"{public_name(pattern)}: {_why_nothing(pattern, system, path)}"
            if not absolute:
                message += f" (relative patterns start at {public_name(base)})"
            raise UnreadableSource(message)
    return [_log_file(system, path, place, root) for path in paths]


def _files(system: Any, path: str) -> list[str]:  # noqa: ANN401 - fsspec ships no types
    """List files; a path that exists is taken as it stands, even if it holds wildcards."""
    if system.isfile(path):
        return [path]
    if not _WILDCARDS & set(path):
        return []
    return [match for match in system.glob(path) if system.isfile(match)]


def _log_file(system: Any, path: str, place: str, root: str | None) -> LogFile:  # noqa: ANN401 - fsspec ships no types
    url = system.unstrip_protocol(path) if "://" in place else path
    name = public_name(url) if root is None else posixpath.relpath(path, root)
    return LogFile(url, name, log_day(name))


def _why_nothing(pattern: str, system: Any, path: str) -> str:  # noqa: ANN401 - fsspec ships no types
    if system.isdir(path):
        return f"is a folder; files are needed: write {public_name(pattern).rstrip('/')}/*.jsonl or the like"
    if _WILDCARDS & set(pattern):
        return "matches no file; at least one is needed: correct the pattern or put the logs there"
    return "does not exist; a file is needed: correct the path or put the file there"


def _remedy(error: Exception) -> str:
    match error:
        case ImportError() if "s3fs" in str(error):
            return "install the extra for S3: pip install 'anven-pipelines[s3]'"
        case ImportError():
            return "install the package that fsspec asks for"
        case ValueError() if "Protocol not known" in str(error):
            return "use a path or an fsspec URL such as s3://, memory:// or file://"
        case PermissionError():
            return "grant this process the right to read it"
        case FileNotFoundError():
            return "correct the path or put the file there"
        case _:
            return "check the address, the network and the credentials in the environment"
