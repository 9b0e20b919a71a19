# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""What the scheme remembers, in SQLite through SQLAlchemy Core. Every change is one transaction, synced when it commits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    create_engine,
    event,
)

from protocol.errors import UsageError

FILE_NAME = "issuer.sqlite"
VERSION = 1

_metadata = MetaData()

devices = Table(
    "devices",
    _metadata,
    Column("device", LargeBinary, primary_key=True),
    Column("key", LargeBinary, nullable=False, unique=True),
    Column("currency", Integer, nullable=False),
    Column("locked_down", Boolean, nullable=False),
    Column("blocked", Boolean, nullable=False, default=False),
)
credentials = Table(
    "credentials",
    _metadata,
    Column("key", LargeBinary, primary_key=True),
    Column("device", LargeBinary, nullable=False, index=True),
    Column("serial", LargeBinary, nullable=False, unique=True),
    Column("number", String, nullable=False, unique=True),
    Column("certificate", LargeBinary, nullable=False),
    Column("blocked", Boolean, nullable=False, default=False),
)
vouchers = Table(
    "vouchers",
    _metadata,
    Column("device", LargeBinary, primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("amount", BigInteger, nullable=False),
    Column("currency", Integer, nullable=False),
    Column("message", LargeBinary, nullable=False),
)
terminals = Table(
    "terminals",
    _metadata,
    Column("terminal_id", String, primary_key=True),
    Column("key", LargeBinary, nullable=False),
    Column("serial", LargeBinary, nullable=False, unique=True),
    Column("certificate", LargeBinary, nullable=False),
    Column("blocked", Boolean, nullable=False, default=False),
)


class Database:
    """The issuer's database file."""

    def __init__(self, folder: Path, *, create: bool = False) -> None:
        """Open the database in `folder`; UsageError when there is none, or one of another version."""
        path = folder / FILE_NAME
        if not create and not path.exists():
            raise UsageError(f"there is no issuer in {folder}; make one with `tap-issuer init`")
        self._engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": 30})
        event.listen(self._engine, "connect", _on_connect)
        event.listen(self._engine, "begin", _on_begin)
        with self._engine.begin() as connection:
            if create:
                _metadata.create_all(connection)
                connection.exec_driver_sql(f"PRAGMA user_version = {VERSION}")
            found = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
        if found != VERSION:
            raise UsageError(f"{path} is of version {found}, this program reads version {VERSION}")

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Yield a connection; what was done with it is there for good afterwards, or not at all."""
        with self._engine.begin() as connection:
            yield connection

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()


def _on_connect(connection: Any, _: object) -> None:
    connection.isolation_level = None  # SQLAlchemy begins transactions, not the driver
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")


def _on_begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")  # who will write takes its turn before reading
