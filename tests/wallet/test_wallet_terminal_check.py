# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Whether a terminal has proved itself: everything right passes, each thing wrong is refused by its own name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import date

import pytest

from protocol.apdu import Command, Response
from protocol.certificate import Authority, Merchant, TerminalCertificate, Usage, issue
from protocol.commands import DEFAULT_NAME, VERSION_1, get_virtual_card, relay_check, select
from protocol.envelope import SUITE_1
from protocol.errors import Check, VerificationError
from protocol.fci import ApplicationFci
from protocol.messages import GetVirtualCard, RelayCheck
from protocol.signing import PrivateKey
from protocol.status import StatusWord
from protocol.transcript import Digests, Record, digests
from wallet.tee.terminal_check import Expectation, require_proof

_TODAY = date(2026, 11, 22)
_NONCE, _CHALLENGE = b"n" * 8, b"c" * 8
_ACQUIRER, _STRANGER, _TERMINAL = (PrivateKey.from_scalar(bytes([number]) * 32) for number in (1, 2, 3))
_UNSIGNED = TerminalCertificate(
    b"serial01", b"TLAQ", Usage.TERMINAL, date(2026, 1, 1), date(2027, 1, 1), _TERMINAL.public, bytes(64), "TERM0001",
    Merchant("Bakery", 5462, 978),
)  # fmt: skip

Exchange = tuple[Command, Response]


def _selected(fci: bytes | None = None, sw: StatusWord = StatusWord.OK) -> Exchange:
    offered = ApplicationFci(DEFAULT_NAME, (VERSION_1,), (SUITE_1,)).encode()
    return select(DEFAULT_NAME), Response(offered if fci is None else fci, sw)


def _relayed(nonce: bytes = _NONCE, sw: StatusWord = StatusWord.OK) -> Exchange:
    return relay_check(RelayCheck(_CHALLENGE)), Response(nonce, sw)


def _prefix(said: tuple[Exchange, ...]) -> bytes:
    return b"".join(
        Record.of_command(command).encode() + Record.of_response(answer).encode() for command, answer in said
    )


@dataclass(frozen=True, slots=True)
class Tap:
    """A tap up to GET VIRTUAL CARD, as the terminal signs it and as the wallet sees and expects it."""

    certificate: TerminalCertificate = _UNSIGNED
    acquirer: PrivateKey = _ACQUIRER
    signer: PrivateKey = _TERMINAL
    said: tuple[Exchange, ...] = (_selected(), _relayed())
    seen: tuple[Exchange, ...] | None = None
    tap_key_seen: bytes = bytes(32)
    expected: Expectation = field(
        default=Expectation(Authority(b"TLAQ", _ACQUIRER.public), _TODAY, frozenset(), _NONCE, (VERSION_1,), (SUITE_1,))
    )

    def judge(self) -> None:
        """Raise VerificationError unless the terminal has proved itself."""
        certificate = issue(self.certificate, self.acquirer)
        unsigned = GetVirtualCard(certificate, bytes(32), bytes(64))
        signature = self.signer.sign(GetVirtualCard.signature_input(self._digests(unsigned, self.said).t1))
        hello = GetVirtualCard(certificate, self.tap_key_seen, signature)
        seen = self.said if self.seen is None else self.seen
        require_proof(hello, self._digests(hello, seen), _prefix(seen), self.expected)

    @staticmethod
    def _digests(hello: GetVirtualCard, said: tuple[Exchange, ...]) -> Digests:
        return digests(_prefix(said), get_virtual_card(VERSION_1, SUITE_1, hello))


def _expecting(tap: Tap, **changes: object) -> Tap:
    return replace(tap, expected=replace(tap.expected, **changes))  # type: ignore[arg-type]


def _certified(tap: Tap, **changes: object) -> Tap:
    return replace(tap, certificate=replace(tap.certificate, **changes))  # type: ignore[arg-type]


_GOOD = Tap()
_OTHER_FCI = ApplicationFci(DEFAULT_NAME, (2, VERSION_1), (SUITE_1,)).encode()
_DIRECTORY_FIRST = (select(b"2PAY.SYS.DDF01"), Response(b"listed", StatusWord.OK))


@pytest.mark.parametrize(
    "tap",
    [
        _GOOD,
        replace(_GOOD, said=(_DIRECTORY_FIRST, _selected(), _relayed())),
        _certified(_GOOD, valid_from=_TODAY),
        _certified(_GOOD, valid_until=_TODAY),
        _expecting(_GOOD, blocked=frozenset({b"serial02"})),
    ],
    ids=["plain", "with the directory", "from today", "until today", "another one blocked"],
)
def test_a_terminal_that_proves_itself_is_accepted(tap: Tap) -> None:
    tap.judge()


_BAD: dict[str, tuple[Callable[[Tap], Tap], Check]] = {
    "a credential's certificate": (lambda tap: _certified(tap, usage=Usage.CREDENTIAL), Check.CERTIFICATE_USAGE),
    "another acquirer's name": (lambda tap: _certified(tap, authority=b"TLIS"), Check.CERTIFICATE_ISSUER),
    "signed by a stranger": (lambda tap: replace(tap, acquirer=_STRANGER), Check.CERTIFICATE_SIGNATURE),
    "signed by itself": (lambda tap: replace(tap, acquirer=_TERMINAL), Check.CERTIFICATE_SIGNATURE),
    "from tomorrow": (
        lambda tap: _certified(tap, valid_from=date(2026, 11, 23)),
        Check.CERTIFICATE_NOT_YET_VALID,
    ),
    "until yesterday": (lambda tap: _certified(tap, valid_until=date(2026, 11, 21)), Check.CERTIFICATE_EXPIRED),
    "blocked": (lambda tap: _expecting(tap, blocked=frozenset({b"serial01"})), Check.CERTIFICATE_BLOCKED),
    "another key": (lambda tap: replace(tap, signer=_STRANGER), Check.SIGNATURE),
    "certified key is no point": (lambda tap: _certified(tap, public_key=bytes(33)), Check.SIGNATURE),
    "tap key changed on the way": (lambda tap: replace(tap, tap_key_seen=b"x" * 32), Check.SIGNATURE),
    "name changed on the way": (
        lambda tap: replace(tap, seen=((select(DEFAULT_NAME[:-1]), _selected()[1]), _relayed())),
        Check.SIGNATURE,
    ),
    "challenge changed on the way": (
        lambda tap: replace(tap, seen=(_selected(), (relay_check(RelayCheck(b"d" * 8)), _relayed()[1]))),
        Check.SIGNATURE,
    ),
    "directory left out": (
        lambda tap: replace(tap, said=(_DIRECTORY_FIRST, *tap.said), seen=tap.said),
        Check.SIGNATURE,
    ),
    "another nonce": (lambda tap: replace(tap, said=(_selected(), _relayed(b"m" * 8))), Check.TRANSCRIPT),
    "an older nonce": (lambda tap: _expecting(tap, nonce=b"o" * 8), Check.TRANSCRIPT),
    "no RELAY CHECK": (lambda tap: replace(tap, said=(_selected(),)), Check.TRANSCRIPT),
    "nothing said": (lambda tap: replace(tap, said=()), Check.TRANSCRIPT),
    "RELAY CHECK first": (lambda tap: replace(tap, said=(_relayed(), _selected())), Check.TRANSCRIPT),
    "something in between": (
        lambda tap: replace(tap, said=(_selected(), _DIRECTORY_FIRST, _relayed())),
        Check.TRANSCRIPT,
    ),
    "RELAY CHECK failed": (
        lambda tap: replace(tap, said=(_selected(), _relayed(sw=StatusWord.CONDITIONS_NOT_SATISFIED))),
        Check.TRANSCRIPT,
    ),
    "SELECT failed": (
        lambda tap: replace(tap, said=(_selected(sw=StatusWord.NOT_FOUND), _relayed())),
        Check.TRANSCRIPT,
    ),
    "an offer that is not ours": (
        lambda tap: replace(tap, said=(_selected(_OTHER_FCI), _relayed())),
        Check.TRANSCRIPT,
    ),
    "no FCI": (lambda tap: replace(tap, said=(_selected(b"nonsense"), _relayed())), Check.TRANSCRIPT),
    "version list cut down": (lambda tap: _expecting(tap, versions=(2, VERSION_1)), Check.TRANSCRIPT),
    "suite list cut down": (lambda tap: _expecting(tap, suites=(2, SUITE_1)), Check.TRANSCRIPT),
}


@pytest.mark.parametrize("name", _BAD)
def test_a_terminal_with_one_thing_wrong_is_refused_by_its_name(name: str) -> None:
    spoil, check = _BAD[name]
    with pytest.raises(VerificationError) as refused:
        spoil(_GOOD).judge()
    assert refused.value.check is check


def test_a_transcript_cut_at_any_byte_is_refused() -> None:
    good = _prefix(_GOOD.said)
    for length in range(len(good)):
        with pytest.raises(VerificationError):
            _judge_prefix(good[:length])
    _judge_prefix(good)


def _judge_prefix(prefix: bytes) -> None:
    certificate = issue(_UNSIGNED, _ACQUIRER)
    unsigned = GetVirtualCard(certificate, bytes(32), bytes(64))
    both = digests(prefix, get_virtual_card(VERSION_1, SUITE_1, unsigned))
    hello = replace(unsigned, signature=_TERMINAL.sign(GetVirtualCard.signature_input(both.t1)))
    require_proof(hello, both, prefix, _GOOD.expected)
