# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Tests with a real reader, opt-in: `pytest tests/hardware --reader nfc:usb`. docs/links.md says what to lay on it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from protocol.transport.base import CardLink
from protocol.transport.opening import open_terminal_end


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--reader", required=True, metavar="LINK", help="nfc:usb, nfc:tty:USB0:pn532, pcsc: …")


@pytest.fixture
def reader(request: pytest.FixtureRequest) -> Iterator[CardLink]:
    with open_terminal_end(request.config.getoption("--reader")) as link:
        yield link
