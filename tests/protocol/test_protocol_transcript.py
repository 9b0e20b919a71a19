# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Transcripts: every byte that was said is in the digests, however it was cut up on the way."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.apdu import MAX_DATA, Command, Response
from protocol.commands import DEFAULT_NAME, Occurrence, get_virtual_card, relay_check, select
from protocol.errors import DecodeError
from protocol.fci import ApplicationFci
from protocol.messages import GetVirtualCard, RelayCheck
from protocol.status import StatusWord
from protocol.transcript import Digests, Record, digests, exchanges
from protocol.transport.chaining import CardChaining, TerminalChaining

Tap = list[tuple[Command, Response]]
_CHALLENGE, _NONCE = RelayCheck(bytes([0xC1]) * 8), bytes([0xA1]) * 8


def _prefix(tap: Tap) -> bytes:
    return b"".join(Record.of_command(sent).encode() + Record.of_response(got).encode() for sent, got in tap)


def _fci(name: bytes = DEFAULT_NAME, versions: tuple[int, ...] = (2, 1), suites: tuple[int, ...] = (2, 1)) -> Response:
    return Response(ApplicationFci(name, versions, suites).encode(), StatusWord.OK)


def _tap(
    *,
    selected: Command | None = None,
    fci: Response | None = None,
    challenge: RelayCheck = _CHALLENGE,
    nonce: Response | None = None,
) -> Tap:
    return [
        (selected or select(DEFAULT_NAME), fci or _fci()),
        (relay_check(challenge), nonce or Response(_NONCE, StatusWord.OK)),
    ]


def _other_tap(change: str) -> Tap:
    """The tap of `_tap` with one thing changed."""
    changed: dict[str, Callable[[], Tap]] = {
        "name asked for": lambda: _tap(selected=select(DEFAULT_NAME[:-1])),
        "occurrence": lambda: _tap(selected=select(DEFAULT_NAME, Occurrence.NEXT)),
        "name answered": lambda: _tap(fci=_fci(name=DEFAULT_NAME[:-1] + b"\x02")),
        "version list cut down": lambda: _tap(fci=_fci(versions=(1,))),
        "version list turned": lambda: _tap(fci=_fci(versions=(1, 2))),
        "suite list cut down": lambda: _tap(fci=_fci(suites=(1,))),
        "suite list turned": lambda: _tap(fci=_fci(suites=(1, 2))),
        "status word of the FCI": lambda: _tap(fci=replace(_fci(), sw=StatusWord.SELECTED_FILE_DEACTIVATED)),
        "challenge": lambda: _tap(challenge=RelayCheck(bytes(8))),
        "nonce": lambda: _tap(nonce=Response(bytes(8), StatusWord.OK)),
        "status word of the nonce": lambda: _tap(nonce=Response(_NONCE, StatusWord(0x9001))),
        "relay check left out": lambda: _tap()[:1],
        "nothing said": list,
        "directory read before": lambda: [(select(b"2PAY.SYS.DDF01"), Response(b"", StatusWord.NOT_FOUND)), *_tap()],
        "said twice": lambda: [*_tap(), *_tap()],
        "said in another order": lambda: list(reversed(_tap())),
    }
    return changed[change]()


_CHANGES = [
    "name asked for",
    "occurrence",
    "name answered",
    "version list cut down",
    "version list turned",
    "suite list cut down",
    "suite list turned",
    "status word of the FCI",
    "challenge",
    "nonce",
    "status word of the nonce",
    "relay check left out",
    "nothing said",
    "directory read before",
    "said twice",
    "said in another order",
]


@pytest.fixture
def hello(terminal_hello: GetVirtualCard) -> Command:
    return get_virtual_card(1, 1, terminal_hello)


def test_record_is_direction_length_and_content() -> None:
    assert Record.of_command(select(DEFAULT_NAME)).encode().hex() == "010000000c00a40400" + DEFAULT_NAME.hex()
    assert Record.of_response(Response(b"\xaa", StatusWord.OK)).encode().hex() == "0200000003aa9000"


def test_digests_are_hashes_of_what_was_said(hello: Command) -> None:
    prefix = _prefix(_tap())
    length = 4 + len(hello.data)
    unsigned = b"\x01" + (length - 64).to_bytes(4, "big") + hello.header + hello.data[:-64]
    signed = b"\x01" + length.to_bytes(4, "big") + hello.header + hello.data
    expected = Digests(hashlib.sha256(prefix + unsigned).digest(), hashlib.sha256(prefix + signed).digest())
    assert digests(prefix, hello) == expected


@pytest.mark.parametrize("change", _CHANGES)
def test_digests_bind_everything_that_was_said_before(change: str, hello: Command) -> None:  # B3, B4
    meant, changed = digests(_prefix(_tap()), hello), digests(_prefix(_other_tap(change)), hello)
    assert changed.t1 != meant.t1
    assert changed.t2 != meant.t2


def test_no_two_changes_give_the_same_digests(hello: Command) -> None:
    found = {digests(_prefix(_other_tap(change)), hello) for change in _CHANGES}
    assert len(found) == len(_CHANGES)


@pytest.mark.parametrize("header", [(0x00, 0x50, 1, 1), (0x80, 0x52, 1, 1), (0x80, 0x50, 2, 1), (0x80, 0x50, 1, 2)])
def test_digests_bind_version_suite_and_the_rest_of_the_header(
    header: tuple[int, int, int, int], hello: Command
) -> None:  # B4
    meant, changed = digests(b"", hello), digests(b"", Command(*header, hello.data))
    assert changed.t1 != meant.t1
    assert changed.t2 != meant.t2


def test_digests_bind_every_byte_of_the_request(hello: Command) -> None:
    meant = digests(b"", hello)
    for position in range(len(hello.data)):
        data = bytearray(hello.data)
        data[position] ^= 1
        changed = digests(b"", hello.with_data(bytes(data)))
        in_signature = position >= len(data) - 64
        assert changed.t2 != meant.t2
        assert (changed.t1 == meant.t1) is in_signature


def test_border_between_records_is_bound(hello: Command) -> None:
    moved = Response(_NONCE[:-1], StatusWord.OK)
    assert digests(_prefix(_tap(nonce=moved)), hello) != digests(_prefix(_tap()), hello)


def test_request_without_room_for_a_signature_is_refused(hello: Command) -> None:
    with pytest.raises(DecodeError, match="signature"):
        digests(b"", hello.with_data(bytes(63)))


def test_expected_length_is_not_bound(hello: Command) -> None:
    assert digests(b"", replace(hello, ne=None)) == digests(b"", hello)


@pytest.mark.parametrize("extended", [True, False], ids=["extended", "short"])
def test_both_ends_have_the_same_digests_however_the_messages_were_cut(extended: bool, hello: Command) -> None:
    at_card, at_terminal = b"", b""
    long_answer = Response(bytes(range(256)) * 2, StatusWord.OK)
    whole: list[Command] = []

    def answer(command: Command) -> Response:
        nonlocal at_card
        whole.append(command)
        at_card += Record.of_command(command).encode() + Record.of_response(long_answer).encode()
        return long_answer

    terminal = TerminalChaining(CardChaining(answer).process, extended=extended)
    for command, _ in _tap():
        response = terminal.exchange(command)
        at_terminal += Record.of_command(command).encode() + Record.of_response(response).encode()
    terminal.exchange(hello)
    assert at_card.startswith(at_terminal)
    assert digests(at_card[: len(at_terminal)], whole[-1]) == digests(at_terminal, hello)


def test_chaining_bit_is_not_recorded(hello: Command) -> None:
    chained = replace(hello, cla=hello.cla | 0x10)
    assert Record.of_command(chained) == Record.of_command(hello)
    assert digests(b"", chained) == digests(b"", hello)


def test_what_was_said_is_found_again() -> None:
    assert exchanges(b"") == []
    said = exchanges(_prefix(_tap()))
    assert said == [(replace(sent, ne=None), got) for sent, got in _tap()]


_COMMANDS = st.builds(Command, st.sampled_from([0x00, 0x80]), *[st.integers(0, 255)] * 3, st.binary(max_size=40))
_RESPONSES = st.builds(Response, st.binary(max_size=40), st.integers(0, 0xFFFF).map(StatusWord))


@given(st.lists(st.tuples(_COMMANDS, _RESPONSES), max_size=5))
def test_any_tap_is_found_again(tap: Tap) -> None:
    assert exchanges(_prefix(tap)) == tap


_SENT, _GOT = Record(1, bytes(4)).encode(), Record(2, b"\x90\x00").encode()


@pytest.mark.parametrize(
    "prefix",
    [
        _SENT,
        _GOT,
        _GOT + _SENT,
        _SENT + _SENT,
        _GOT + _GOT,
        _SENT + _GOT + _SENT,
        _SENT + _GOT + _GOT + _SENT,
        Record(3, bytes(4)).encode() + _GOT,
        _SENT + Record(0, b"\x90\x00").encode(),
        Record(1, bytes(3)).encode() + _GOT,  # no whole header
        Record(1, b"").encode() + _GOT,
        _SENT + Record(2, b"\x90").encode(),  # no whole status word
        _SENT + Record(2, b"").encode(),
        (_SENT + _GOT)[:-1],
        (_SENT + Record(2, b"\xaa\x90\x00").encode())[:-1],  # what is left would still be an answer
        (_SENT + _GOT)[:11],
        _SENT + _GOT + b"\x01",
        _SENT + _GOT + bytes(4),
        b"\x01\xff\xff\xff\xff" + bytes(4) + _GOT,
        bytes(5),
    ],
)
def test_malformed_prefix_is_refused(prefix: bytes) -> None:
    with pytest.raises(DecodeError):
        exchanges(prefix)


def test_command_longer_than_an_apdu_can_be_is_refused() -> None:
    with pytest.raises(DecodeError):
        exchanges(Record(1, bytes(4 + MAX_DATA + 1)).encode() + _GOT)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_transcript_or_refused(data: bytes) -> None:
    try:
        said = exchanges(data)
    except DecodeError:
        return
    assert len(_prefix(said)) == len(data)
