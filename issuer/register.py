# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""What an operator of the scheme may look up and decide: totals, who is known, what is blocked."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from issuer.database import Books, Database, DeviceRow, TerminalRow
from protocol.card_number import CardNumber
from protocol.certificate import TerminalCertificate
from protocol.errors import UsageError
from protocol.money import Amount, Currency


@dataclass(frozen=True, slots=True)
class Total(Amount):
    """A sum of amounts: it may have more digits than one payment or purse can carry."""

    def __post_init__(self) -> None:
        """Take a sum of any length."""


@dataclass(frozen=True, slots=True)
class WalletEntry:
    """One wallet: its id, how many cards it got, its money, whether its TEE said that it is locked down.

    `loaded` is what its user paid in. By the issuer's books that is now: held by the wallet (`holds`, vouchers on their way
    included), deducted and not settled (`open`), with merchants (`paid`), less what the issuer lost (`lost`).
    `restored` says that its storage was put back and its money waits to be reissued.
    """

    device: str
    cards: int
    loaded: Total
    holds: Total
    open: Total
    paid: Total
    lost: Total
    locked_down: bool
    blocked: bool
    restored: bool


@dataclass(frozen=True, slots=True)
class CardEntry:
    """One virtual card, its number masked."""

    serial: str
    device: str
    masked_number: str
    blocked: bool


@dataclass(frozen=True, slots=True)
class TerminalEntry:
    """One certified terminal, and what its merchant has been paid."""

    terminal_id: str
    merchant: str
    valid_until: str
    paid: Total
    blocked: bool


class Register:
    """Read and decide; requests of wallets and terminals are for service.py."""

    def __init__(self, folder: Path) -> None:
        """Open the database; UsageError when there is no issuer in `folder`."""
        self._database = Database(folder)

    def wallets(self) -> list[WalletEntry]:
        """Return every wallet that applied."""
        with self._database.transaction() as books:
            cards = Counter(row.device for row in books.credentials())
            return [_wallet(row, cards[row.device], books) for row in books.devices()]

    def cards(self) -> list[CardEntry]:
        """Return every card, numbers masked."""
        with self._database.transaction() as books:
            rows = books.credentials()
        return [
            CardEntry(row.serial.hex(), row.device.hex(), CardNumber(row.number).masked, row.blocked) for row in rows
        ]

    def terminals(self) -> list[TerminalEntry]:
        """Return every terminal that was certified."""
        with self._database.transaction() as books:
            return [_terminal(row, books.taken(row.hash)) for row in books.terminals()]

    def block_terminal(self, terminal_id: str) -> None:
        """Block a terminal; wallets learn of it with their next list."""
        with self._database.transaction() as books:
            if not books.block_terminal(terminal_id):
                raise UsageError(f"no terminal {terminal_id} was ever certified; `tap-issuer show` lists them")

    def block_card(self, serial: str) -> None:
        """Block a card by its serial; terminals learn of its number with their next list."""
        key = _serial(serial)
        with self._database.transaction() as books:
            if not books.block_credential(key):
                raise UsageError(f"no card has the serial {serial}; `tap-issuer show --cards` lists them")

    def allow_unblocking(self, device: str) -> None:
        """Let the wallet of this id unblock its PIN once."""
        with self._database.transaction() as books:
            row = books.device(_serial(device, "wallet's id; `tap-issuer show` lists them"))
            if row is None:
                raise UsageError(f"no wallet has the id {device}; `tap-issuer show` lists them")
            books.update_device(replace(row, may_unblock=True))

    def close(self) -> None:
        """Close the database."""
        self._database.close()


def _serial(text: str, what: str = "serial; `tap-issuer show --cards` lists them") -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise UsageError(f"{text!r} is no {what}") from None


def _wallet(row: DeviceRow, cards: int, books: Books) -> WalletEntry:
    unit = Currency.of(row.currency)
    loaded, holds, waits, paid, lost = (
        Total(sum_of(row.device), unit) for sum_of in (books.loaded, books.holds, books.open, books.paid, books.lost)
    )
    return WalletEntry(
        row.device.hex(), cards, loaded, holds, waits, paid, lost, row.locked_down, row.blocked, row.restored_at > 0
    )


def _terminal(row: TerminalRow, taken: int) -> TerminalEntry:
    certificate = TerminalCertificate.decode(row.certificate)
    merchant = certificate.merchant
    paid = Total(taken, Currency.of(merchant.currency))
    return TerminalEntry(row.terminal_id, merchant.name, certificate.valid_until.isoformat(), paid, row.blocked)
