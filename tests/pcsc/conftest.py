# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The PC/SC service of these tests, and a card in each of its slots."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.pcsc.slots import CardInSlot, ExchangeableCard, Service


@pytest.fixture(scope="session")
def service(pcsc_service: Service) -> Service:
    """The PC/SC service; whoever stops it starts it again."""
    return pcsc_service


@pytest.fixture(autouse=True)
def _service_runs_on(service: Service) -> Iterator[None]:
    """Let no test that failed half-way leave the others without a service."""
    yield
    service.start()


@pytest.fixture(scope="module")
def first(service: Service) -> Iterator[ExchangeableCard]:
    """The card in the first slot for the tests of one module; it can be made another one."""
    card = ExchangeableCard()
    with CardInSlot(card):
        yield card


@pytest.fixture(scope="module")
def second(service: Service) -> Iterator[ExchangeableCard]:
    """The card in the second slot, which states short lengths only."""
    card = ExchangeableCard()
    with CardInSlot(card, 1, short=True):
        yield card
