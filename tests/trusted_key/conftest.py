# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""A Key on a card, and a trusted world that is paired with it."""

from __future__ import annotations

from datetime import date

import pytest
from hypothesis import settings

from protocol.certificate import Merchant, TerminalCertificate, Usage, issue
from protocol.key_commands import KeyModule
from protocol.signing import PrivateKey
from tests.trusted_key.board import Board, made
from tests.trusted_key.small_key import Bench

settings.register_profile("trusted key", deadline=None)
settings.load_profile("trusted key")


@pytest.fixture
def bench() -> Bench:
    """A Key, the card that it is on, and the trusted world that it knows."""
    return Bench()


@pytest.fixture
def board() -> Board:
    """A Key with every module."""
    return made(*KeyModule)


@pytest.fixture
def token() -> Board:
    """A Key without a channel: a plain token."""
    return made(KeyModule.STORAGE, KeyModule.COMPUTING, KeyModule.INTERACTION)


@pytest.fixture(scope="session")
def bakery() -> TerminalCertificate:
    """The certificate of a terminal."""
    unsigned = TerminalCertificate(
        serial=bytes(8),
        authority=b"ACQ1",
        usage=Usage.TERMINAL,
        valid_from=date(2026, 1, 1),
        valid_until=date(2027, 12, 31),
        public_key=PrivateKey.from_scalar(bytes([3]) * 32).public,
        signature=bytes(64),
        terminal_id="TERM0001",
        merchant=Merchant("Corner Bakery", 5462, 978),
    )
    return issue(unsigned, PrivateKey.from_scalar(bytes([1]) * 32))
