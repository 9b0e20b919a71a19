# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Whoever listens to a whole tap learns neither the card number nor the amount nor the channel's secret."""

from __future__ import annotations

from datetime import date, time

import pytest

from protocol.commands import DEFAULT_NAME
from protocol.messages import Debit
from protocol.transport.trace import TracingLink
from tests.end_to_end.parties import HostileTerminal, ToldLaboratory, link_to, terminal_like

AMOUNT = 3947
DEBIT = Debit(AMOUNT, 978, date(2026, 1, 2), time(3, 4, 5))


@pytest.fixture(scope="module")
def tap(laboratory: ToldLaboratory) -> tuple[bytes, HostileTerminal, dict[str, bytes]]:
    """One tap: what went over the air, the terminal, and what only terminal and TEE may know."""
    link = TracingLink(link_to(laboratory.phone.card))
    terminal = HostileTerminal(link, terminal_like(laboratory.home.path))
    verified = terminal.read_card()
    terminal.session.debit(DEBIT)
    terminal.session.confirm()
    terminal.leave()
    heard = b"".join(one.command + one.answer for one in link.exchanges)
    secrets = {
        "channel secret": bytes(verified.card.secret),
        "command key": bytes(verified.keys.command_key),
        "response key": bytes(verified.keys.response_key),
        "transaction id": verified.keys.transaction_id,
        "tap key": terminal.key.private_bytes_raw(),
        "card number": bytes.fromhex(verified.card.number.digits),
        "card number as text": verified.card.number.digits.encode(),
        "card number but its ends": bytes.fromhex(verified.card.number.digits)[3:7],
        "last four digits": verified.card.number.digits[-4:].encode(),
    }
    return heard, terminal, secrets


def test_the_listener_hears_the_whole_tap(tap: tuple[bytes, HostileTerminal, dict[str, bytes]]) -> None:
    heard, terminal, _ = tap
    assert 700 < len(heard) <= 850
    assert DEFAULT_NAME in heard
    assert terminal.identity.certificate.encode() in heard
    assert terminal.key.public_key().public_bytes_raw() in heard


@pytest.mark.attack("N1")
def test_the_listener_hears_no_secret_and_no_number(tap: tuple[bytes, HostileTerminal, dict[str, bytes]]) -> None:
    heard, _, secrets = tap
    assert [name for name, value in secrets.items() if value in heard] == []


@pytest.mark.attack("N1")
def test_the_listener_hears_no_amount(tap: tuple[bytes, HostileTerminal, dict[str, bytes]]) -> None:
    heard, _, _ = tap
    forms = [
        bytes.fromhex(f"{AMOUNT:012d}"),
        bytes.fromhex(f"{AMOUNT:08d}"),
        str(AMOUNT).encode(),
        b"39.47",
        b"39,47",
        *(AMOUNT.to_bytes(size, order) for size in (4, 6, 8) for order in ("big", "little")),
        DEBIT.encode(),
        DEBIT.encode()[6:],
    ]
    assert [form.hex() for form in forms if form in heard] == []


@pytest.mark.attack("N1")
def test_the_length_of_a_tap_does_not_tell_the_amount(laboratory: ToldLaboratory) -> None:
    lengths = set()
    for amount in (1, 999, 4_999, 999_999):
        link = TracingLink(link_to(laboratory.phone.card))
        terminal = HostileTerminal(link, terminal_like(laboratory.home.path))
        terminal.read_card()
        terminal.session.debit(Debit(amount, 978, date(2026, 1, 2), time(3, 4, 5)))
        terminal.session.confirm()
        terminal.leave()
        lengths.add(tuple(one.lengths for one in link.exchanges))
    assert len(lengths) == 1
