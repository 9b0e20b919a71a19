# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""What an operator of the scheme may look up and decide: totals, who is known, what is blocked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import func, select, update

from issuer.database import Database, credentials, devices, terminals, vouchers
from protocol.card_number import CardNumber
from protocol.certificate import TerminalCertificate
from protocol.errors import UsageError
from protocol.money import Amount, Currency


@dataclass(frozen=True, slots=True)
class WalletRow:
    """One wallet: its id, how many cards it got, what was loaded, whether its TEE said that it is locked down."""

    device: str
    cards: int
    loaded: Amount
    locked_down: bool
    blocked: bool


@dataclass(frozen=True, slots=True)
class CardRow:
    """One virtual card, its number masked."""

    serial: str
    device: str
    masked_number: str
    blocked: bool


@dataclass(frozen=True, slots=True)
class TerminalRow:
    """One certified terminal."""

    terminal_id: str
    merchant: str
    valid_until: str
    blocked: bool


class Register:
    """Read and decide; requests of wallets and terminals are for service.py."""

    def __init__(self, folder: Path) -> None:
        """Open the database; UsageError when there is no issuer in `folder`."""
        self._database = Database(folder)

    def wallets(self) -> list[WalletRow]:
        """Return every wallet that applied."""
        cards = select(func.count()).where(credentials.c.device == devices.c.device).scalar_subquery()
        loaded = (
            select(func.coalesce(func.sum(vouchers.c.amount), 0))
            .where(vouchers.c.device == devices.c.device)
            .scalar_subquery()
        )
        with self._database.transaction() as connection:
            rows = connection.execute(select(devices, cards.label("cards"), loaded.label("loaded"))).all()
        return [
            WalletRow(
                row.device.hex(), row.cards, Amount(row.loaded, Currency.of(row.currency)), row.locked_down, row.blocked
            )
            for row in rows
        ]

    def cards(self) -> list[CardRow]:
        """Return every card, numbers masked."""
        with self._database.transaction() as connection:
            rows = connection.execute(select(credentials)).all()
        return [CardRow(row.serial.hex(), row.device.hex(), CardNumber(row.number).masked, row.blocked) for row in rows]

    def terminals(self) -> list[TerminalRow]:
        """Return every terminal that was certified."""
        with self._database.transaction() as connection:
            rows = connection.execute(select(terminals)).all()
        certificates = [(row, TerminalCertificate.decode(row.certificate)) for row in rows]
        return [
            TerminalRow(row.terminal_id, certificate.merchant.name, certificate.valid_until.isoformat(), row.blocked)
            for row, certificate in certificates
        ]

    def block_terminal(self, terminal_id: str) -> None:
        """Block a terminal; wallets learn of it with their next list."""
        statement = update(terminals).where(terminals.c.terminal_id == terminal_id).values(blocked=True)
        with self._database.transaction() as connection:
            if connection.execute(statement).rowcount == 0:
                raise UsageError(f"no terminal {terminal_id} was ever certified; `tap-issuer show` lists them")

    def block_card(self, serial: str) -> None:
        """Block a card by its serial; terminals learn of its number with their next list."""
        try:
            key = bytes.fromhex(serial)
        except ValueError:
            raise UsageError(f"{serial!r} is no serial; `tap-issuer show --cards` lists them") from None
        statement = update(credentials).where(credentials.c.serial == key).values(blocked=True)
        with self._database.transaction() as connection:
            if connection.execute(statement).rowcount == 0:
                raise UsageError(f"no card has the serial {serial}; `tap-issuer show --cards` lists them")

    def close(self) -> None:
        """Close the database."""
        self._database.close()
