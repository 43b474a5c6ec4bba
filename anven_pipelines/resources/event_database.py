"""The append-only event log on SQLite or PostgreSQL, from which all state is derived.

Every operation opens its own connection and closes it: nothing is left open between operations, at teardown
or in a forked process. Appends are serialised (SQLite: `BEGIN IMMEDIATE`; PostgreSQL: an advisory lock), so
concurrent processes make one unbroken chain.
"""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

from anven_pipelines.domain.errors import InvalidInput, TamperedLog, UnavailableService
from anven_pipelines.domain.events import GENESIS, Event, Head, Verification, follow, verify_chain

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

SCHEMA_VERSION: Final = 1

_BUSY_SECONDS: Final = 30  # longest wait for another writer; an append takes milliseconds
_CONNECT_SECONDS: Final = 10
_STATEMENT_SECONDS: Final = 60  # longest one on PostgreSQL, waiting included
_IDLE_SECONDS: Final = 60  # a writer that hangs within its transaction loses it there, and the writers' lock with it
_KEEPALIVE: Final = {
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
}
"""A PostgreSQL server that is gone without a word is given up after 25 s (libpq's documentation, section 34.1.2)."""
_APPEND_LOCK: Final = 0x616E76656E  # "anven": PostgreSQL advisory locks are named by number
_ONLY_ROW: Final = 1
_WRITES: Final = "anven_writes"

_metadata = sa.MetaData()
_schema = sa.Table("schema_version", _metadata, sa.Column("version", sa.Integer, primary_key=True, autoincrement=False))
_events = sa.Table(
    "events",
    _metadata,
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("ts", sa.Text, nullable=False),
    sa.Column("stream", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("key", sa.Text, nullable=False),
    sa.Column("payload", sa.Text, nullable=False),
    sa.Column("prev_hash", sa.Text, nullable=False),
    sa.Column("hash", sa.Text, nullable=False),
    sa.UniqueConstraint("stream", "key"),
)
_chain_head = sa.Table(
    "chain_head",
    _metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("seq", sa.BigInteger, nullable=False),
    sa.Column("hash", sa.Text, nullable=False),
)


class EventDatabase:
    """The event log in the database at a SQLAlchemy URL; `StateStore` says what each operation does."""

    def __init__(self, url: str) -> None:
        """Take the URL; nothing is opened before the first operation."""
        self._url = url
        self._engine: sa.Engine | None = None
        self._ready = False

    def append(self, *, stream: str, kind: str, key: str, payload: Mapping[str, Any], now: datetime) -> Event:
        """Add an event, once per key."""
        with self._transaction(writes=True) as connection:
            head = _read_head(connection)
            if head is None:
                message = f"the head of the event log in {self._shown} was removed; restore the database from a backup"
                raise TamperedLog(message)
            event = follow(head, stream=stream, kind=kind, key=key, payload=payload, now=now)
            same_key = sa.select(_events).where(_events.c.stream == stream, _events.c.key == key)
            if (standing := connection.execute(same_key).one_or_none()) is not None:
                return _confirm_same(Event(*standing), event)
            connection.execute(_events.insert().values(_row(event)))
            connection.execute(_chain_head.update().values(seq=event.seq, hash=event.hash))
            return event

    def events(self, stream: str | None = None, kind: str | None = None) -> list[Event]:
        """Return the events of a stream and kind (all where None), oldest first."""
        with self._transaction() as connection:
            return [Event(*row) for row in connection.execute(_select(stream, kind).order_by(_events.c.seq))]

    def events_under(self, prefix: str) -> list[Event]:
        """Return the events of all streams whose name begins so, oldest first."""
        with self._transaction() as connection:
            query = sa.select(_events).where(_events.c.stream.startswith(prefix, autoescape=True))
            return [Event(*row) for row in connection.execute(query.order_by(_events.c.seq))]

    def latest(self, stream: str, kind: str | None = None) -> Event | None:
        """Return the newest event of a stream and kind; None where there is none."""
        with self._transaction() as connection:
            newest = _select(stream, kind).order_by(_events.c.seq.desc()).limit(1)
            row = connection.execute(newest).one_or_none()
            return None if row is None else Event(*row)

    def verify(self) -> Verification:
        """Check every event and the head against the hash chain, as of one moment."""
        with self._transaction() as connection:
            in_order = sa.select(_events).order_by(_events.c.seq).execution_options(yield_per=1000)
            rows = (Event(*row) for row in connection.execute(in_order))
            return verify_chain(rows, _read_head(connection))

    def require_intact(self) -> None:
        """Raise TamperedLog where the log is not what was appended."""
        found = self.verify()
        if not found.ok:
            message = (
                f"the event log in {self._shown} was changed: event {found.broken_seq}, {found.reason}; "
                "do not trust the state: restore the database from a backup and find out who wrote to it"
            )
            raise TamperedLog(message)

    @contextmanager
    def _transaction(self, *, writes: bool = False) -> Iterator[sa.Connection]:
        """Open a connection and a transaction: writers one after the other, readers on one snapshot."""
        try:
            engine = self._opened()
            if not self._ready:
                self._prepare(engine)
            with _begin(engine, writes=writes) as connection:
                yield connection
        except sa.exc.DBAPIError as error:
            message = (
                f"the state store {self._shown} did not answer: {_first_line(error.orig)}; check that the database "
                "is up, that the address, user and password are right and that it can be written to"
            )
            raise UnavailableService(message) from error

    def _prepare(self, engine: sa.Engine) -> None:
        """Create the tables on first use, under the writers' lock: processes may start at the same time."""
        with _begin(engine, writes=False) as connection:  # so that a reader never waits for a writer
            version = _read_version(connection)
        if version is None:
            with _begin(engine, writes=True) as connection:
                version = _read_version(connection) or _create_tables(connection)
        if version > SCHEMA_VERSION:
            message = (
                f"the state store {self._shown} has schema version {version}; this release knows up to "
                f"{SCHEMA_VERSION}: upgrade anven-pipelines"
            )
            raise InvalidInput(message)
        self._ready = True

    def _opened(self) -> sa.Engine:
        if self._engine is None:
            self._engine = _open_engine(_parse(self._url))
        return self._engine

    @property
    def _shown(self) -> str:
        """The URL without its password and without its query, which may hold one too."""
        return _parse(self._url).set(query={}).render_as_string(hide_password=True)


def _parse(url: str) -> sa.URL:
    """Read the URL without ever repeating it: it may hold a password."""
    try:
        parsed = sa.make_url(url)
        backend = parsed.get_backend_name()
    except sa.exc.ArgumentError as error:
        message = "the state store's url is not a SQLAlchemy URL; sqlite:///path or postgresql+psycopg2://... is needed"
        raise InvalidInput(message) from error
    if backend not in {"sqlite", "postgresql"}:
        message = f"the state store's url is for {backend}; sqlite:///path or postgresql+psycopg2://... is needed"
        raise InvalidInput(message)
    if backend == "sqlite" and parsed.database in {None, "", ":memory:"}:
        message = "the state store's url names no file; an event log must outlive its process: sqlite:///path is needed"
        raise InvalidInput(message)
    return parsed


def _open_engine(url: sa.URL) -> sa.Engine:
    is_sqlite = url.get_backend_name() == "sqlite"
    defaults = {"timeout": _BUSY_SECONDS} if is_sqlite else {"connect_timeout": _CONNECT_SECONDS, **_KEEPALIVE}
    connect_args = {name: value for name, value in defaults.items() if name not in url.query}
    try:
        engine = sa.create_engine(url, poolclass=sa.NullPool, connect_args=connect_args)
    except ImportError as error:
        message = f"{url.drivername} is not installed ({error}); install anven-pipelines[postgres]"
        raise UnavailableService(message) from error
    if is_sqlite:
        _make_folder(Path(str(url.database)).parent, url)
        sa.event.listen(engine, "connect", _set_up_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
    else:
        sa.event.listen(engine, "connect", _set_up_postgres)
    return engine


def _make_folder(folder: Path, url: sa.URL) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        message = (
            f"the folder of the state store {url.database} cannot be created: {error.strerror}; name a file "
            "in a folder that this process may create"
        )
        raise UnavailableService(message) from error


def _set_up_sqlite(dbapi_connection: Any, _record: object) -> None:  # noqa: ANN401 - a DB-API connection has no common type
    """Readers beside one writer (WAL), and every commit on the disk before it returns (FULL)."""
    dbapi_connection.isolation_level = None  # transactions begin where we say, see _begin_sqlite
    dbapi_connection.text_factory = _any_text
    cursor = dbapi_connection.cursor()
    for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _set_up_postgres(dbapi_connection: Any, _record: object) -> None:  # noqa: ANN401 - as above
    """Wait for nobody without end; set here, as poolers such as PgBouncer refuse it in the connection's options."""
    limits = {
        "lock_timeout": _BUSY_SECONDS,
        "statement_timeout": _STATEMENT_SECONDS,
        "idle_in_transaction_session_timeout": _IDLE_SECONDS,
    }
    cursor = dbapi_connection.cursor()
    for name, seconds in limits.items():
        cursor.execute(f"SET {name} = {round(1000 * seconds)}")
    cursor.close()
    dbapi_connection.commit()


def _any_text(stored: bytes) -> str:
    """Read damaged text too, so that `verify` can name its event; other readers would stop at the first."""
    return stored.decode(errors="surrogateescape")


def _begin_sqlite(connection: sa.Connection) -> None:
    """Writers take the lock before they read the head; a lock taken later fails instead of waiting."""
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextmanager
def _begin(engine: sa.Engine, *, writes: bool) -> Iterator[sa.Connection]:
    with engine.connect().execution_options(**{_WRITES: writes}) as connection:
        if engine.dialect.name == "postgresql" and not writes:
            connection.execution_options(isolation_level="REPEATABLE READ")
        with connection.begin():
            if engine.dialect.name == "postgresql" and writes:
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_APPEND_LOCK)))
            yield connection


def _read_version(connection: sa.Connection) -> int | None:
    if not sa.inspect(connection).has_table(_schema.name):
        return None
    version: int | None = connection.scalar(sa.select(sa.func.max(_schema.c.version)))
    return version


def _create_tables(connection: sa.Connection) -> int:
    """Create everything in the caller's transaction, so that others see all of it or nothing."""
    _metadata.create_all(connection)
    connection.execute(_schema.insert().values(version=SCHEMA_VERSION))
    connection.execute(_chain_head.insert().values(id=_ONLY_ROW, seq=GENESIS.seq, hash=GENESIS.hash))
    return SCHEMA_VERSION


def _read_head(connection: sa.Connection) -> Head | None:
    row = connection.execute(sa.select(_chain_head.c.seq, _chain_head.c.hash)).one_or_none()
    return None if row is None else Head(*row)


def _select(stream: str | None, kind: str | None) -> sa.Select[Any]:
    query = sa.select(_events)
    if stream is not None:
        query = query.where(_events.c.stream == stream)
    return query if kind is None else query.where(_events.c.kind == kind)


def _row(event: Event) -> dict[str, Any]:
    """Return the event as a row; the fields stand in the order of the columns."""
    return dict(zip(_events.c.keys(), vars(event).values(), strict=True))


def _confirm_same(standing: Event, wanted: Event) -> Event:
    if (standing.kind, standing.payload_json) == (wanted.kind, wanted.payload_json):
        return standing
    message = (
        f"the key {wanted.key!r} stands in the stream {wanted.stream!r} as event {standing.seq}, {standing.kind} "
        f"{standing.payload_json}; it cannot also be {wanted.kind} {wanted.payload_json}: use another key"
    )
    raise InvalidInput(message)


def _first_line(error: BaseException | None) -> str:
    return str(error).strip().split("\n", 1)[0]
