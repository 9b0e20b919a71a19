# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""What the scheme remembers, in SQLite through SQLAlchemy Core. Every change is one transaction, synced when it commits."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import (
    URL,
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Connection,
    Date,
    Integer,
    LargeBinary,
    MetaData,
    Select,
    String,
    Table,
    and_,
    create_engine,
    event,
    func,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.exc import DatabaseError

from console.files import cannot_use
from protocol.errors import UsageError

FILE_NAME = "issuer.sqlite"
VERSION = 4

_metadata = MetaData()

_devices = Table(
    "devices",
    _metadata,
    Column("device", LargeBinary, primary_key=True),
    Column("key", LargeBinary, nullable=False, unique=True),
    Column("currency", Integer, nullable=False),
    Column("locked_down", Boolean, nullable=False),
    Column("blocked", Boolean, nullable=False, default=False),
    Column("listed", Integer, nullable=False, default=0),
    Column("nonce", LargeBinary, nullable=False, default=b""),
    Column("nonce_at", BigInteger, nullable=False, default=0),
    Column("restored_at", BigInteger, nullable=False, default=0),
    Column("reissued_at", BigInteger, nullable=False, default=0),
    Column("may_unblock", Boolean, nullable=False, default=False),
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
    Column("withdrawn_at", BigInteger, nullable=False, default=0),
    Column("valid_until", Date, nullable=False),
)
_vouchers = Table(
    "vouchers",
    _metadata,
    Column("device", LargeBinary, primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("amount", BigInteger, nullable=False),
    Column("currency", Integer, nullable=False),
    Column("message", LargeBinary, nullable=False),
    Column("refund", Boolean, nullable=False, default=False),
)
_terminals = Table(
    "terminals",
    _metadata,
    Column("terminal_id", String, primary_key=True),
    Column("key", LargeBinary, nullable=False),
    Column("serial", LargeBinary, nullable=False, unique=True),
    Column("certificate", LargeBinary, nullable=False),
    Column("blocked", Boolean, nullable=False, default=False),
    Column("hash", LargeBinary, nullable=False, unique=True),
)
# A debit is one (credential, counter, id), known from a wallet's list, a terminal's claim, or both.
_debits = Table(
    "debits",
    _metadata,
    Column("credential", LargeBinary, primary_key=True),
    Column("counter", Integer, primary_key=True, autoincrement=False),
    Column("transaction_id", LargeBinary, primary_key=True),
    Column("device", LargeBinary, nullable=False, index=True),
    Column("terminal_hash", LargeBinary, nullable=False, index=True),
    Column("amount", BigInteger, nullable=False),
    Column("listed_at", BigInteger, nullable=False, default=0),
    Column("paid_at", BigInteger, nullable=False, default=0),
    Column("charged_back", Boolean, nullable=False, default=False),
    Column("refunded", Boolean, nullable=False, default=False),
    Column("denied", Boolean, nullable=False, default=False),
    Column("taken", BigInteger, nullable=False, default=0),
    Column("lost", BigInteger, nullable=False, default=0),
)
_voids = Table(
    "voids",
    _metadata,
    Column("terminal_hash", LargeBinary, primary_key=True),
    Column("credential", LargeBinary, primary_key=True),
    Column("counter", Integer, primary_key=True, autoincrement=False),
    Column("transaction_id", LargeBinary, primary_key=True),
)

_PAYS_MERCHANT = and_(_debits.c.paid_at > 0, ~_debits.c.charged_back)
_COUNTS = or_(_debits.c.listed_at > 0, _PAYS_MERCHANT)
_IS_OPEN = and_(_debits.c.listed_at > 0, ~_PAYS_MERCHANT, ~_debits.c.refunded)


@dataclass(frozen=True, slots=True)
class DeviceRow:
    """A wallet that applied.

    `listed` is how many debits it has listed, `nonce` what its next statement is signed over and `nonce_at` when that was
    given. `restored_at` is when it said that its storage was put back, `reissued_at` when its money was reissued since.
    Times are seconds since 1970, 0 for never. `may_unblock` is the operator's word that its PIN may have its tries back.
    """

    device: bytes
    key: bytes
    currency: int
    locked_down: bool
    blocked: bool = False
    listed: int = 0
    nonce: bytes = b""
    nonce_at: int = 0
    restored_at: int = 0
    reissued_at: int = 0
    may_unblock: bool = False


@dataclass(frozen=True, slots=True)
class CredentialRow:
    """A credential that was issued. `number` is the card number in full; `withdrawn_at` is 0 while it may pay.

    `valid_until` is its certificate's.
    """

    key: bytes
    device: bytes
    serial: bytes
    number: str
    certificate: bytes
    valid_until: date
    blocked: bool = False
    withdrawn_at: int = 0

    def __repr__(self) -> str:
        return f"CredentialRow({self.serial.hex()})"


@dataclass(frozen=True, slots=True)
class VoucherRow:
    """Money that was handed out; `message` is the signed voucher. A refund was paid in before."""

    device: bytes
    number: int
    amount: int
    currency: int
    message: bytes
    refund: bool = False


@dataclass(frozen=True, slots=True)
class TerminalRow:
    """A terminal that was certified; `hash` is the SHA-256 of its certificate, by which receipts name it."""

    terminal_id: str
    key: bytes
    serial: bytes
    certificate: bytes
    hash: bytes
    blocked: bool = False


@dataclass(frozen=True, slots=True)
class DebitRow:
    """A debit: what the wallet listed (`listed_at`), what the terminal was paid for (`paid_at`), or both; 0 for never.

    `charged_back` takes the payment back from the merchant, `refunded` gave the money back to the wallet, `denied` says that
    the wallet's list does not have it, or not as it was signed, or in the place of another. `taken` is what the wallet holds
    less for it by the books, `lost` what it did not hold: the issuer's loss.
    """

    credential: bytes
    counter: int
    transaction_id: bytes
    device: bytes
    terminal_hash: bytes
    amount: int
    listed_at: int = 0
    paid_at: int = 0
    charged_back: bool = False
    refunded: bool = False
    denied: bool = False
    taken: int = 0
    lost: int = 0

    @property
    def key(self) -> tuple[bytes, int, bytes]:
        """What makes it this debit and no other."""
        return self.credential, self.counter, self.transaction_id

    @property
    def pays_merchant(self) -> bool:
        """Whether the merchant has the money."""
        return self.paid_at > 0 and not self.charged_back

    @property
    def counts(self) -> bool:
        """Whether the wallet holds less for it by the books."""
        return self.listed_at > 0 or self.pays_merchant

    @property
    def is_open(self) -> bool:
        """Whether the wallet gave the money and nobody has it yet."""
        return self.listed_at > 0 and not self.pays_merchant and not self.refunded


AnyRow = TypeVar("AnyRow", DeviceRow, CredentialRow, VoucherRow, TerminalRow, DebitRow)


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

    def update_device(self, row: DeviceRow) -> None:
        """Replace what is known of a wallet."""
        self._connection.execute(update(_devices).where(_devices.c.device == row.device).values(asdict(row)))

    def credential(self, key: bytes) -> CredentialRow | None:
        """Return a credential by its public key."""
        return self._one(CredentialRow, select(_credentials).where(_credentials.c.key == key))

    def credential_by_serial(self, serial: bytes) -> CredentialRow | None:
        """Return a credential by the serial of its certificate."""
        return self._one(CredentialRow, select(_credentials).where(_credentials.c.serial == serial))

    def withdraw_credentials(self, device: bytes, at: int) -> None:
        """Block every credential of a wallet that is not withdrawn yet."""
        mine = (_credentials.c.device == device) & (_credentials.c.withdrawn_at == 0)
        self._connection.execute(update(_credentials).where(mine).values(blocked=True, withdrawn_at=at))

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

    def blocked_numbers(self, today: date) -> list[str]:
        """Return the numbers of blocked cards, and of blocked wallets' cards; one that has expired is refused anyway."""
        of_a_blocked_wallet = _credentials.c.device.in_(select(_devices.c.device).where(_devices.c.blocked))
        listed = and_(or_(_credentials.c.blocked, of_a_blocked_wallet), _credentials.c.valid_until >= today)
        return list(self._connection.execute(select(_credentials.c.number).where(listed)).scalars())

    def block_credential(self, serial: bytes) -> bool:
        """Block a credential; False when there is none of that serial."""
        statement = update(_credentials).where(_credentials.c.serial == serial).values(blocked=True)
        return self._connection.execute(statement).rowcount > 0

    def newest_voucher(self, device: bytes) -> VoucherRow | None:
        """Return the last voucher of a wallet."""
        mine = select(_vouchers).where(_vouchers.c.device == device).order_by(_vouchers.c.number.desc()).limit(1)
        return self._one(VoucherRow, mine)

    def voucher(self, device: bytes, number: int) -> VoucherRow | None:
        """Return a voucher of a wallet by its number."""
        mine = (_vouchers.c.device == device) & (_vouchers.c.number == number)
        return self._one(VoucherRow, select(_vouchers).where(mine))

    def vouchers_after(self, device: bytes, number: int, limit: int) -> list[VoucherRow]:
        """Return the vouchers of a wallet that came after `number`, in order, at most `limit`."""
        mine = (_vouchers.c.device == device) & (_vouchers.c.number > number)
        return self._all(VoucherRow, select(_vouchers).where(mine).order_by(_vouchers.c.number).limit(limit))

    def loaded(self, device: bytes, *, refunds: bool = False) -> int:
        """Return the sum of a wallet's vouchers in minor units: its loads, or its refunds."""
        mine = (_vouchers.c.device == device) & (_vouchers.c.refund == refunds)
        total = select(func.coalesce(func.sum(_vouchers.c.amount), 0)).where(mine)
        return int(self._connection.execute(total).scalar_one())

    def add_voucher(self, row: VoucherRow) -> None:
        """Remember a voucher."""
        self._connection.execute(insert(_vouchers).values(asdict(row)))

    def terminal(self, terminal_id: str) -> TerminalRow | None:
        """Return a terminal by its id."""
        return self._one(TerminalRow, select(_terminals).where(_terminals.c.terminal_id == terminal_id))

    def terminal_by_hash(self, digest: bytes) -> TerminalRow | None:
        """Return a terminal by the SHA-256 of its certificate."""
        return self._one(TerminalRow, select(_terminals).where(_terminals.c.hash == digest))

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

    def debit(self, key: tuple[bytes, int, bytes]) -> DebitRow | None:
        """Return a debit by credential, counter and id."""
        return self._one(DebitRow, select(_debits).where(_is_debit(key)))

    def debits_by_id(self, device: bytes, ids: Collection[bytes]) -> list[DebitRow]:
        """Return the debits of a wallet with these transaction ids."""
        mine = (_debits.c.device == device) & _debits.c.transaction_id.in_(ids)
        return self._all(DebitRow, select(_debits).where(mine))

    def open_debits(self, device: bytes) -> list[DebitRow]:
        """Return the debits that a wallet listed and that nobody has the money of."""
        mine = (_debits.c.device == device) & _IS_OPEN
        return self._all(DebitRow, select(_debits).where(mine))

    def unlisted_debits(self, device: bytes) -> list[DebitRow]:
        """Return the debits that a terminal claimed and the wallet has not listed."""
        return self._all(DebitRow, select(_debits).where((_debits.c.device == device) & (_debits.c.listed_at == 0)))

    def holds(self, device: bytes) -> int:
        """Return what a wallet should hold, vouchers on their way included, in minor units; never less than nothing."""
        given = self.loaded(device) + self.loaded(device, refunds=True)
        return given - self._total(_debits.c.taken, and_(_debits.c.device == device, _COUNTS))

    def open(self, device: bytes) -> int:
        """Return what a wallet has given and nobody has got yet, in minor units."""
        return self._total(_debits.c.amount, and_(_debits.c.device == device, _IS_OPEN))

    def paid(self, device: bytes) -> int:
        """Return what merchants have got from a wallet, in minor units."""
        return self._total(_debits.c.amount, and_(_debits.c.device == device, _PAYS_MERCHANT))

    def lost(self, device: bytes) -> int:
        """Return what the issuer has lost by a wallet, in minor units."""
        return self._total(_debits.c.lost, and_(_debits.c.device == device, _COUNTS))

    def taken(self, terminal_hash: bytes) -> int:
        """Return what a terminal's merchant has been paid, in minor units."""
        return self._total(_debits.c.amount, and_(_debits.c.terminal_hash == terminal_hash, _PAYS_MERCHANT))

    def _total(self, what: ColumnElement[Any], condition: ColumnElement[bool]) -> int:
        total = select(func.coalesce(func.sum(what), 0)).where(condition)
        return int(self._connection.execute(total).scalar_one())

    def put_debit(self, row: DebitRow) -> None:
        """Remember a debit, or what has become of it."""
        changed = self._connection.execute(update(_debits).where(_is_debit(row.key)).values(asdict(row)))
        if not changed.rowcount:
            self._connection.execute(insert(_debits).values(asdict(row)))

    def is_void(self, terminal_hash: bytes, key: tuple[bytes, int, bytes]) -> bool:
        """Tell whether that terminal gave a transaction up."""
        return self._connection.execute(select(_voids).where(_is_void(terminal_hash, key))).first() is not None

    def add_void(self, terminal_hash: bytes, key: tuple[bytes, int, bytes]) -> None:
        """Remember that a terminal gave a transaction up; once is enough."""
        if not self.is_void(terminal_hash, key):
            credential, counter, transaction_id = key
            self._connection.execute(
                insert(_voids).values(
                    terminal_hash=terminal_hash, credential=credential, counter=counter, transaction_id=transaction_id
                )
            )

    def _one(self, kind: type[AnyRow], statement: Select[Any]) -> AnyRow | None:
        row = self._connection.execute(statement).one_or_none()
        return kind(**row._mapping) if row else None

    def _all(self, kind: type[AnyRow], statement: Select[Any]) -> list[AnyRow]:
        return [kind(**row._mapping) for row in self._connection.execute(statement)]


def _is_debit(key: tuple[bytes, int, bytes]) -> ColumnElement[bool]:
    credential, counter, transaction_id = key
    return and_(
        _debits.c.credential == credential, _debits.c.counter == counter, _debits.c.transaction_id == transaction_id
    )


def _is_void(terminal_hash: bytes, key: tuple[bytes, int, bytes]) -> ColumnElement[bool]:
    credential, counter, transaction_id = key
    return and_(
        _voids.c.terminal_hash == terminal_hash,
        _voids.c.credential == credential,
        _voids.c.counter == counter,
        _voids.c.transaction_id == transaction_id,
    )


class NoIssuerError(UsageError):
    """There is no issuer in a folder, or only what a torn try to make one left."""

    def __init__(self, folder: Path) -> None:
        """Say how to make one."""
        super().__init__(f"there is no issuer in {folder}; make one with `tap-issuer init`")


class Database:
    """The issuer's database file."""

    def __init__(self, folder: Path, *, create: bool = False) -> None:
        """Open the database in `folder`; UsageError when there is none, or one of another version.

        `create` makes it, all of it or none, also where an earlier try was torn; UsageError when there is one already.
        """
        path = folder / FILE_NAME
        if not create and not path.exists():
            raise NoIssuerError(folder)
        self._engine = create_engine(URL.create("sqlite", database=str(path)), connect_args={"timeout": 30})
        event.listen(self._engine, "connect", _on_connect)
        event.listen(self._engine, "begin", _on_begin)
        try:
            with self._engine.begin() as connection:
                _prepare(connection, path, create=create)
        except DatabaseError as error:
            raise cannot_use(path, error.orig) from None

    @contextmanager
    def transaction(self) -> Iterator[Books]:
        """Yield the books; what was written in them is there for good afterwards, or not at all."""
        with self._engine.begin() as connection:
            yield Books(connection)

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()


def require_none(folder: Path) -> None:
    """Raise UsageError when there is an issuer in `folder`; what a torn try to make one left is none."""
    with suppress(NoIssuerError):
        Database(folder).close()
        raise _already(folder)


def _already(folder: Path) -> UsageError:
    return UsageError(f"there is an issuer in {folder} already; it is kept as it is")


def _prepare(connection: Connection, path: Path, *, create: bool) -> None:
    """Check the version, or make the tables, all in one transaction: before it, SQLite has made a file without any."""
    is_made = connection.exec_driver_sql("SELECT count(*) FROM sqlite_master").scalar_one() > 0
    if create and is_made:
        raise _already(path.parent)
    if create:
        _metadata.create_all(connection)
        connection.exec_driver_sql(f"PRAGMA user_version = {VERSION}")
    elif not is_made:
        raise NoIssuerError(path.parent)
    found = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
    if found != VERSION:
        raise UsageError(f"{path} is of version {found}, this program reads version {VERSION}")


def _on_connect(connection: Any, _: object) -> None:
    connection.isolation_level = None  # SQLAlchemy begins transactions, not the driver
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")


def _on_begin(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")  # who will write takes its turn before reading
