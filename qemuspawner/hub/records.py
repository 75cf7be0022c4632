"""The hub's own records: what JupyterHub's database has no place for, in a SQLite file of the hub's account.

Not in JupyterHub's own database: that is migrated by JupyterHub, which knows nothing of tables of ours.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import NullPool, create_engine, event, inspect
from sqlalchemy.orm import DeclarativeBase, Session
from sqlalchemy.schema import CreateColumn

from qemuspawner.paths import StatePaths

_BUSY_TIMEOUT_S = 5


class Base(DeclarativeBase):
    """A table; each is defined in the module that is about it."""


class Records:
    """The file, made where it is missing."""

    def __init__(self, state: StatePaths) -> None:
        self._path = state.records
        # A connection for each use: they are cheap, and none outlives a hub that is restarted or a test's.
        self._engine = create_engine(
            f"sqlite:///{self._path}", poolclass=NullPool, connect_args={"timeout": _BUSY_TIMEOUT_S}
        )
        event.listen(self._engine, "connect", _set_up)
        self._are_made: set[str] = set()
        self._shared = threading.local()

    @contextmanager
    def one_read(self) -> Iterator[None]:
        """Have all that is read within read by one connection: to open one takes longer than most reads do.

        Nothing is written within, and nothing awaited.
        """
        with Session(self._engine, expire_on_commit=False) as session:
            self._shared.session = session
            try:
                yield
            finally:
                del self._shared.session

    @contextmanager
    def session(self) -> Iterator[Session]:
        """What is done within is done wholly or not at all; objects may be read after it.

        Raises:
            sqlalchemy.exc.OperationalError: The file cannot be opened or written.
        """
        self._make()
        if (shared := getattr(self._shared, "session", None)) is not None:
            yield shared
            return
        with Session(self._engine, expire_on_commit=False) as session, session.begin():
            yield session

    def _make(self) -> None:
        """Make the file, for this account alone, and what it lacks of the tables that are known by now."""
        missing = Base.metadata.tables.keys() - self._are_made
        if missing or not self._path.exists():
            _make_private(self._path)
            Base.metadata.create_all(self._engine)
            self._add_columns()
            self._are_made |= missing

    def _add_columns(self) -> None:
        """Add what an older version's tables lack; such a column has a default that the file can keep."""
        with self._engine.begin() as connection:
            for table in Base.metadata.sorted_tables:
                there = {column["name"] for column in inspect(connection).get_columns(table.name)}
                for column in table.columns:
                    if column.name not in there:
                        definition = CreateColumn(column).compile(self._engine)
                        connection.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN {definition}")


def _make_private(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))


def _set_up(connection: Any, _record: Any) -> None:
    connection.execute("PRAGMA journal_mode=WAL")
    # A crash of the host may cost the last second, never the file.
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute("PRAGMA foreign_keys=ON")
