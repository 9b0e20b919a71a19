# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""What the scheme remembers, in SQLite through SQLAlchemy Core. Every change is one transaction, synced when it commits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import (
    URL,
    BigInteger,
    Boolean,
    Column,
    Connection,
    Integer,
    LargeBinary,
    MetaData,
    Select,
    String,
    Table,
    create_engine,
    event,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.exc import DatabaseError

from protocol.errors import UsageError

FILE_NAME = "issuer.sqlite"
VERSION = 1

_metadata = MetaData()

_devices = Table(
    "devices",
    _metadata,
    Column("device", LargeBinary, primary_key=True),
    Column("key", LargeBinary, nullable=False, unique=True),
    Column("currency", Integer, nullable=False),
    Column("locked_down", Boolean, nullable=False),
    Column("blocked", Boolean, nullable=False, default=False),
)
_credentials = Table(
    "credentials",
    _metadata,
    Column("key", LargeBinary, primary_key=True),
    Column("device", LargeBinary, nullable=False, index=True),
    Column("serial", LargeBinary, nullable=False, unique=True),
    Column("number", String, nullable=False, unique=True),
    Column("certificate", LargeBinary, nullable=False),
    Column("blocked", Boolean, nullable=False, default=False),
)
_vouchers = Table(
    "vouchers",
    _metadata,
    Column("device", LargeBinary, primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("amount", BigInteger, nullable=False),
    Column("currency", Integer, nullable=False),
    Column("message", LargeBinary, nullable=False),
)
_terminals = Table(
    "terminals",
    _metadata,
    Column("terminal_id", String, primary_key=True),
    Column("key", LargeBinary, nullable=False),
    Column("serial", LargeBinary, nullable=False, unique=True),
    Column("certificate", LargeBinary, nullable=False),
    Column("blocked", Boolean, nullable=False, default=False),
)


@dataclass(frozen=True, slots=True)
class DeviceRow:
    """A wallet that applied."""

    device: bytes
    key: bytes
    currency: int
    locked_down: bool
    blocked: bool = False


@dataclass(frozen=True, slots=True)
class CredentialRow:
    """A credential that was issued. `number` is the card number in full."""

    key: bytes
    device: bytes
    serial: bytes
    number: str
    certificate: bytes
    blocked: bool = False

    def __repr__(self) -> str:
        return f"CredentialRow({self.serial.hex()})"


@dataclass(frozen=True, slots=True)
class VoucherRow:
    """Money that was handed out; `message` is the signed voucher."""

    device: bytes
    number: int
    amount: int
    currency: int
    message: bytes


@dataclass(frozen=True, slots=True)
class TerminalRow:
    """A terminal that was certified."""

    terminal_id: str
    key: bytes
    serial: bytes
    certificate: bytes
    blocked: bool = False


AnyRow = TypeVar("AnyRow", DeviceRow, CredentialRow, VoucherRow, TerminalRow)


class Books:
    """What can be asked and written within one transaction."""

    def __init__(self, connection: Connection) -> None:
        """Work within the transaction of `connection`."""
        self._connection = connection

    def device(self, device: bytes) -> DeviceRow | None:
        """Return a wallet by its id."""
        return self._one(DeviceRow, select(_devices).where(_devices.c.device == device))

    def devices(self) -> list[DeviceRow]:
        """Return every wallet."""
        return self._all(DeviceRow, select(_devices))

    def add_device(self, row: DeviceRow) -> None:
        """Remember a wallet."""
        self._connection.execute(insert(_devices).values(asdict(row)))

    def credential(self, key: bytes) -> CredentialRow | None:
        """Return a credential by its public key."""
        return self._one(CredentialRow, select(_credentials).where(_credentials.c.key == key))

    def credentials(self) -> list[CredentialRow]:
        """Return every credential."""
        return self._all(CredentialRow, select(_credentials))

    def has_number(self, number: str) -> bool:
        """Tell whether a card number is taken."""
        found = select(_credentials.c.key).where(_credentials.c.number == number)
        return self._connection.execute(found).first() is not None

    def add_credential(self, row: CredentialRow) -> None:
        """Remember a credential."""
        self._connection.execute(insert(_credentials).values(asdict(row)))

    def blocked_numbers(self) -> list[str]:
        """Return the card numbers that are blocked."""
        return list(self._connection.execute(select(_credentials.c.number).where(_credentials.c.blocked)).scalars())

    def block_credential(self, serial: bytes) -> bool:
        """Block a credential; False when there is none of that serial."""
        statement = update(_credentials).where(_credentials.c.serial == serial).values(blocked=True)
        return self._connection.execute(statement).rowcount > 0

    def newest_voucher(self, device: bytes) -> VoucherRow | None:
        """Return the last voucher of a wallet."""
        mine = select(_vouchers).where(_vouchers.c.device == device).order_by(_vouchers.c.number.desc()).limit(1)
        return self._one(VoucherRow, mine)

    def loaded(self, device: bytes) -> int:
        """Return the sum of a wallet's vouchers in minor units."""
        total = select(func.coalesce(func.sum(_vouchers.c.amount), 0)).where(_vouchers.c.device == device)
        return int(self._connection.execute(total).scalar_one())

    def add_voucher(self, row: VoucherRow) -> None:
        """Remember a voucher."""
        self._connection.execute(insert(_vouchers).values(asdict(row)))

    def terminal(self, terminal_id: str) -> TerminalRow | None:
        """Return a terminal by its id."""
        return self._one(TerminalRow, select(_terminals).where(_terminals.c.terminal_id == terminal_id))

    def terminals(self) -> list[TerminalRow]:
        """Return every terminal."""
        return self._all(TerminalRow, select(_terminals))

    def add_terminal(self, row: TerminalRow) -> None:
        """Remember a terminal."""
        self._connection.execute(insert(_terminals).values(asdict(row)))

    def block_terminal(self, terminal_id: str) -> bool:
        """Block a terminal; False when there is none of that id."""
        statement = update(_terminals).where(_terminals.c.terminal_id == terminal_id).values(blocked=True)
        return self._connection.execute(statement).rowcount > 0

    def _one(self, kind: type[AnyRow], statement: Select[Any]) -> AnyRow | None:
        row = self._connection.execute(statement).one_or_none()
        return kind(**row._mapping) if row else None

    def _all(self, kind: type[AnyRow], statement: Select[Any]) -> list[AnyRow]:
        return [kind(**row._mapping) for row in self._connection.execute(statement)]


class Database:
    """The issuer's database file."""

    def __init__(self, folder: Path, *, create: bool = False) -> None:
        """Open the database in `folder`; UsageError when there is none, or one of another version."""
        path = folder / FILE_NAME
        if not create and not path.exists():
            raise UsageError(f"there is no issuer in {folder}; make one with `tap-issuer init`")
        self._engine = create_engine(URL.create("sqlite", database=str(path)), connect_args={"timeout": 30})
        event.listen(self._engine, "connect", _on_connect)
        event.listen(self._engine, "begin", _on_begin)
        try:
            with self._engine.begin() as connection:
                if create:
                    _metadata.create_all(connection)
                    connection.exec_driver_sql(f"PRAGMA user_version = {VERSION}")
                found = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
        except DatabaseError as error:
            raise UsageError(f"{path} cannot be used ({error.orig}); restore it from a copy") from None
        if found != VERSION:
            raise UsageError(f"{path} is of version {found}, this program reads version {VERSION}")

    @contextmanager
    def transaction(self) -> Iterator[Books]:
        """Yield the books; what was written in them is there for good afterwards, or not at all."""
        with self._engine.begin() as connection:
            yield Books(connection)

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()


def _on_connect(connection: Any, _: object) -> None:
    connection.isolation_level = None  # SQLAlchemy begins transactions, not the driver
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")


def _on_begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")  # who will write takes its turn before reading
