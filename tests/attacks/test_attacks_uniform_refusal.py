# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""A terminal that has not proved itself learns nothing from how it is refused: one status word, the same work."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from issuer import keys
from protocol import tally
from protocol.apdu import Command
from protocol.certificate import Usage
from protocol.commands import DEFAULT_NAME, VERSION_1, Ins, get_virtual_card
from protocol.envelope import SUITE_1
from protocol.signing import PrivateKey
from protocol.tally import Operation
from tests.end_to_end.parties import HostileTerminal, flip, link_to, terminal_like
from tests.wallet.near_wallet import NearSession, NearTrustedWorld
from wallet.card import Card
from wallet.payment import PaymentClient

TODAY = datetime.now(UTC).date()
Request = Callable[[HostileTerminal], Command]


def honest(terminal: HostileTerminal) -> Command:
    return get_virtual_card(VERSION_1, SUITE_1, terminal.hello())


def edited(edit: Callable[[bytes], bytes]) -> Request:
    return lambda terminal: honest(terminal).with_data(edit(honest(terminal).data))


@dataclass(frozen=True)
class Case:
    """One way to fail: how the terminal's certificate differs, and what it sends."""

    changes: dict[str, object]
    request: Request = honest
    signer: str = "acquirer"


CASES = {
    "nothing wrong": Case({}),
    "a certificate of another use": Case({"usage": Usage.CREDENTIAL}),
    "an expired certificate": Case({"valid_until": TODAY - timedelta(2)}),
    "a certificate that is not yet valid": Case({"valid_from": TODAY + timedelta(2)}),
    "a certificate of an unknown authority": Case({"authority": b"ELSE"}),
    "a certificate by the issuer": Case({}, signer="issuer"),
    "a certificate that cannot be read": Case({}, edited(lambda data: flip(data, 0))),
    "a certificate with a changed serial": Case({}, edited(lambda data: flip(data, 6))),
    "another signature": Case({}, edited(lambda data: flip(data, -1))),
    "another tap key": Case({}, edited(lambda data: flip(data, -70))),
    "a request cut short": Case({}, edited(lambda data: data[:-1])),
    "an empty request": Case({}, edited(lambda _: b"")),
    "nothing but noise": Case({}, edited(lambda data: os.urandom(len(data)))),
    "a signature of another tap": Case({}, lambda terminal: honest_elsewhere(terminal)),
}


def honest_elsewhere(terminal: HostileTerminal) -> Command:
    """Return what would be right if the wallet had said something else before."""
    said = terminal.session._transcript
    terminal.session._transcript = said[:-1] + bytes([said[-1] ^ 1])
    request = honest(terminal)
    terminal.session._transcript = said
    return request


@pytest.fixture
def card(module_home: Path) -> Iterator[Card]:
    from queue import SimpleQueue

    world = NearTrustedWorld(module_home / "wallet")
    yield Card([PaymentClient(DEFAULT_NAME, NearSession(world), SimpleQueue())])
    world.close()


@pytest.mark.attack("N3")
@pytest.mark.attack("V1")
@pytest.mark.parametrize("name", [name for name in CASES if name != "nothing wrong"])
def test_every_failure_looks_alike(card: Card, module_home: Path, name: str) -> None:
    refused, work = _try(card, module_home, CASES[name])
    accepted, honest_work = _try(card, module_home, CASES["nothing wrong"])
    assert refused == bytes.fromhex("6982")
    assert accepted[-2:] == b"\x90\x00"
    assert work[Operation.VERIFY] == honest_work[Operation.VERIFY] == 2
    assert work[Operation.SIGN] == work[Operation.SYNC] == 0


def _try(card: Card, home: Path, case: Case) -> tuple[bytes, dict[Operation, int]]:
    signer = getattr(keys.load(home / "issuer"), case.signer)
    identity = terminal_like(home, signer, **case.changes)
    terminal = HostileTerminal(link_to(card), identity)
    terminal.approach()
    request = case.request(terminal).encode()
    before = tally.snapshot()
    answer = terminal.link.transceive(request)
    work = tally.since(before)
    terminal.leave()
    return answer, work


@pytest.mark.attack("N3")
def test_a_blocked_terminal_looks_like_any_other_refused_one(card: Card, module_home: Path) -> None:
    strange = replace(terminal_like(module_home), key=PrivateKey.generate())
    terminal = HostileTerminal(link_to(card), strange)
    terminal.approach()
    assert terminal.link.transceive(honest(terminal).encode()) == bytes.fromhex("6982")
    assert Command.decode(honest(terminal).encode()).ins == Ins.GET_VIRTUAL_CARD
