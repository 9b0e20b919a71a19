# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""A terminal that has not proved itself learns nothing from how it is refused: one status word, the same work."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from issuer import keys
from pos.identity import Identity
from protocol.apdu import Command
from protocol.certificate import Usage, issue
from protocol.commands import VERSION_1, get_virtual_card, select
from protocol.envelope import SUITE_1
from protocol.issuing import BlockList
from protocol.signing import PrivateKey
from protocol.tally import Operation
from tests.end_to_end.parties import HostileTerminal, ToldLaboratory, flip, link_to, terminal_like
from tests.end_to_end.soft_wallet import credential_like
from wallet.card import status_of
from wallet.tee.contract import CardRequest, CommandId, Report, TeeError

TODAY = datetime.now(UTC).date()
REFUSED = bytes.fromhex("6982")
KEY_AND_SIGNATURE = 96
Make = Callable[[Path], Identity]
Request = Callable[[HostileTerminal], Command]


def like(**changes: Any) -> Make:
    return lambda home: terminal_like(home, **changes)


def honest(terminal: HostileTerminal) -> Command:
    return get_virtual_card(VERSION_1, SUITE_1, terminal.hello())


def edited(edit: Callable[[bytes], bytes]) -> Request:
    return lambda terminal: honest(terminal).with_data(edit(honest(terminal).data))


def of_another_tap(terminal: HostileTerminal) -> Command:
    """Return what would be right if the wallet had said something else before."""
    said = terminal.session._transcript
    terminal.session._transcript = flip(said, -1)
    request = honest(terminal)
    terminal.session._transcript = said
    return request


def without_a_key(home: Path) -> Identity:
    """Return a terminal whose public key is no point of the curve, certified all the same."""
    made = terminal_like(home)
    certificate = replace(made.certificate, public_key=b"\x02" + b"\xff" * 32)
    return replace(made, certificate=issue(certificate, keys.load(home / "issuer").acquirer))


@dataclass(frozen=True)
class Case:
    """One way to fail: who the terminal is, what it sends, and whether it is on the list of blocked terminals."""

    make: Make = terminal_like
    request: Request = honest
    blocked: bool = False


BY_THE_TERMINAL = {
    "a certificate of another use": Case(like(usage=Usage.CREDENTIAL)),
    "a certificate of the issuer's own use": Case(like(usage=Usage.CREDENTIAL, authority=keys.ISSUER_ID)),
    "an expired certificate": Case(like(valid_until=TODAY - timedelta(2))),
    "a certificate that is not yet valid": Case(like(valid_from=TODAY + timedelta(2))),
    "a certificate of an unknown authority": Case(like(authority=b"ELSE")),
    "a certificate of a foreign acquirer": Case(lambda home: terminal_like(home, PrivateKey.generate())),
    "a certificate by the issuer": Case(lambda home: terminal_like(home, keys.load(home / "issuer").issuer)),
    "a certificate that is blocked": Case(blocked=True),
    "a key that is no point": Case(without_a_key),
    "a key that was not certified": Case(lambda home: replace(terminal_like(home), key=PrivateKey.generate())),
    "everything wrong at once": Case(
        lambda home: terminal_like(
            home, PrivateKey.generate(), usage=Usage.CREDENTIAL, valid_until=TODAY - timedelta(2)
        ),
        edited(lambda data: flip(data, -1)),
        blocked=True,
    ),
    "a certificate that cannot be read": Case(request=edited(lambda data: flip(data, 0))),
    "a certificate of indefinite length": Case(request=edited(lambda data: data[:2] + b"\x80" + data[4:] + bytes(2))),
    "a length longer than needed": Case(request=edited(lambda data: data[:2] + b"\x82\0" + data[3:])),
    "a changed serial": Case(request=edited(lambda data: flip(data, 6))),
    "two certificates": Case(request=edited(lambda data: data[:-KEY_AND_SIGNATURE] + data)),
    "a signature of zeros on the certificate": Case(
        request=edited(lambda data: data[: -KEY_AND_SIGNATURE - 64] + bytes(64) + data[-KEY_AND_SIGNATURE:])
    ),
    "another signature": Case(request=edited(lambda data: flip(data, -1))),
    "a signature of zeros": Case(request=edited(lambda data: data[:-64] + bytes(64))),
    "a signature out of range": Case(request=edited(lambda data: data[:-64] + b"\xff" * 64)),
    "a signature of another tap": Case(request=of_another_tap),
    "another tap key": Case(request=edited(lambda data: flip(data, -70))),
    "a tap key that hides nothing": Case(
        request=edited(lambda data: data[:-KEY_AND_SIGNATURE] + bytes(32) + data[-64:])
    ),
    "a request cut short": Case(request=edited(lambda data: data[:-1])),
    "a request of one byte": Case(request=edited(lambda data: data[:1])),
    "an empty request": Case(request=edited(lambda _: b"")),
    "one byte too many": Case(request=edited(lambda data: data + b"\0")),
    "nothing but noise": Case(request=edited(lambda data: os.urandom(len(data)))),
    "very much noise": Case(request=edited(lambda _: os.urandom(60_000))),
}


@dataclass
class Watched:
    """A wallet whose trusted world, in a process of its own, reports what work it did."""

    laboratory: ToldLaboratory

    @property
    def home(self) -> Path:
        return self.laboratory.home.path

    @property
    def work(self) -> tuple[int, ...]:
        return self.laboratory.phone.tee.invoke(CommandId.REPORT, Report).operations

    def approach(self, identity: Identity) -> HostileTerminal:
        terminal = HostileTerminal(link_to(self.laboratory.phone.card), identity)
        terminal.approach()
        return terminal

    def block(self, *serials: bytes) -> None:
        unsigned = BlockList(int(time.time()), serials, (), bytes(64))
        signature = keys.load(self.home / "issuer").operations.sign(unsigned.signature_input())
        self.laboratory.phone.tee.invoke_command(CommandId.OBEY_LIST, replace(unsigned, signature=signature))

    def done_by(self, act: Callable[[], bytes]) -> tuple[bytes, dict[Operation, int]]:
        before = self.work
        answer = act()
        return answer, dict(zip(Operation, (b - a for a, b in zip(before, self.work, strict=True)), strict=True))


@pytest.fixture
def watched(laboratory: ToldLaboratory) -> Watched:
    return Watched(laboratory)


def require_nothing_told(answer: bytes, work: dict[Operation, int]) -> None:
    """Every refusal is this one: the status word, and the two signatures that a good request costs too."""
    assert answer == REFUSED
    assert work == {**dict.fromkeys(Operation, 0), Operation.VERIFY: 2}


@pytest.mark.attack("N3")
@pytest.mark.attack("V1")
@pytest.mark.parametrize("name", BY_THE_TERMINAL)
def test_every_failure_of_a_terminal_looks_alike(watched: Watched, name: str) -> None:
    case = BY_THE_TERMINAL[name]
    identity = case.make(watched.home)
    watched.block(*([identity.certificate.serial] if case.blocked else []))
    terminal = watched.approach(identity)
    request = case.request(terminal).encode()
    require_nothing_told(*watched.done_by(lambda: terminal.link.transceive(request)))
    terminal.leave()


@pytest.mark.attack("N3")
def test_a_credential_in_a_terminals_place_looks_alike(watched: Watched) -> None:
    terminal = watched.approach(terminal_like(watched.home))
    certificate = credential_like(watched.home, PrivateKey.generate()).encode()
    request = edited(lambda data: certificate + data[-KEY_AND_SIGNATURE:])(terminal).encode()
    require_nothing_told(*watched.done_by(lambda: terminal.link.transceive(request)))
    terminal.leave()


@pytest.mark.attack("N3")
def test_a_good_request_costs_as_many_verifications(watched: Watched) -> None:
    watched.block()
    terminal = watched.approach(terminal_like(watched.home))
    request = honest(terminal).encode()
    answer, work = watched.done_by(lambda: terminal.link.transceive(request))
    terminal.leave()
    assert (answer[-2:], work[Operation.VERIFY]) == (b"\x90\x00", 2)


BY_THE_CLIENT_APPLICATION: dict[str, Callable[[bytes], bytes]] = {
    "another nonce": lambda said: flip(said, -3),
    "another list of versions": lambda said: said.replace(bytes.fromhex("800101"), bytes.fromhex("800102"), 1),
    "another list of suites": lambda said: said.replace(bytes.fromhex("810101"), bytes.fromhex("810102"), 1),
    "another status word": lambda said: flip(said, -1),
    "nothing said": lambda _: b"",
    "half of what was said": lambda said: said[: len(said) // 2],
    "nothing but noise": lambda said: os.urandom(len(said)),
}


@pytest.mark.attack("N3")
@pytest.mark.attack("B4")
@pytest.mark.parametrize("name", BY_THE_CLIENT_APPLICATION)
def test_every_transcript_that_is_not_the_tees_own_looks_alike(watched: Watched, name: str) -> None:
    """A terminal signs what a dishonest client application let it see, and the trusted world is shown the same."""
    terminal = watched.approach(terminal_like(watched.home))
    said = BY_THE_CLIENT_APPLICATION[name](terminal.session._transcript)
    assert said != terminal.session._transcript
    terminal.session._transcript = said
    request = CardRequest(said, VERSION_1, SUITE_1, honest(terminal).data)
    require_nothing_told(*watched.done_by(lambda: _handed_in(watched, request)))
    terminal.leave()


@pytest.mark.attack("N3")
@pytest.mark.attack("B4")
@pytest.mark.parametrize(("version", "suite"), [(2, SUITE_1), (0, SUITE_1), (VERSION_1, 2), (255, 255)])
def test_a_choice_that_the_tee_does_not_offer_looks_alike(watched: Watched, version: int, suite: int) -> None:
    terminal = watched.approach(terminal_like(watched.home))
    request = CardRequest(terminal.session._transcript, version, suite, honest(terminal).data)
    require_nothing_told(*watched.done_by(lambda: _handed_in(watched, request)))
    terminal.leave()


def _handed_in(watched: Watched, request: CardRequest) -> bytes:
    """Return the status word that the card would answer with."""
    try:
        watched.laboratory.phone.tee.invoke_command(CommandId.GET_VIRTUAL_CARD, request)
    except TeeError as error:
        return int(status_of(error)).to_bytes(2, "big")
    return b"\x90\x00"


@pytest.mark.attack("N3")
@pytest.mark.parametrize(
    "before",
    [
        pytest.param(["00a4040000"], id="a SELECT without a name"),
        pytest.param([bytes([0x80, 0x52, 0, 0]).hex()], id="a DEBIT"),
        pytest.param(["ffffffffff", "10a40400", "0060000000"], id="classes and instructions that are none"),
        pytest.param(["80580000080000000000000000"] * 5, id="RELAY CHECK again and again"),
        pytest.param(["00a4040008" + "f0544150ffffffff"], id="a name that is not there"),
    ],
)
def test_whatever_was_said_before_a_request_without_proof_looks_alike(watched: Watched, before: list[str]) -> None:
    terminal = HostileTerminal(
        link_to(watched.laboratory.phone.card), terminal_like(watched.home, PrivateKey.generate())
    )
    for one in before:
        assert len(terminal.link.transceive(bytes.fromhex(one))) == 2  # no data
    terminal.link.transceive(select(bytes.fromhex("325041592E5359532E4444463031")).encode())
    terminal.approach()
    request = honest(terminal).encode()
    require_nothing_told(*watched.done_by(lambda: terminal.link.transceive(request)))
    terminal.leave()
