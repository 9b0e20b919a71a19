# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Trusted computing: keys that do what they are for and never leave, random numbers, counters that never go back."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from protocol import signing
from protocol.key_commands import (
    USES_OF,
    CounterStep,
    CounterValue,
    GenerateKey,
    KeyIns,
    KeyKind,
    KeyList,
    KeyModule,
    KeyOrder,
    KeyUse,
    Named,
    NewCounter,
    Rule,
)
from protocol.secret import Secret
from protocol.status import StatusWord
from tests.trusted_key.board import Board, made
from tests.trusted_key.talk import OK, OTHER_PEER, PEER, Talk
from wallet.trusted_key.slots import Slot

pytestmark = pytest.mark.requirement("K3")

NOT_FOUND, DENIED = StatusWord.REFERENCED_DATA_NOT_FOUND, StatusWord.SECURITY_STATUS_NOT_SATISFIED
_PAIRS = [(kind, use) for kind, uses in USES_OF.items() for use in sorted(uses)]
_LENGTHS = {KeyKind.P256: 33, KeyKind.X25519: 32, KeyKind.ED25519: 32, KeyKind.AES128: 0}


def generate(talk: Talk, kind: KeyKind, use: KeyUse, name: bytes = b"k", rule: Rule = Rule.OPEN) -> bytes:
    return talk.good(KeyIns.GENERATE_KEY, GenerateKey(name, kind, use, rule))


@pytest.mark.parametrize(("kind", "use"), _PAIRS)
def test_a_key_is_made_shown_listed_and_deleted(token: Board, kind: KeyKind, use: KeyUse) -> None:
    talk = token.talk
    public = generate(talk, kind, use)
    assert len(public) == _LENGTHS[kind]
    assert talk.good(KeyIns.PUBLIC_KEY, Named(b"k")) == public
    listed = talk.ask(KeyList, KeyIns.LIST_KEYS)
    assert (listed.keys, listed.free) == ((GenerateKey(b"k", kind, use, Rule.OPEN),), 95)
    assert talk.sw(KeyIns.GENERATE_KEY, GenerateKey(b"k", kind, use, Rule.OPEN)) == StatusWord.ALREADY_EXISTS
    assert talk.good(KeyIns.PUBLIC_KEY, Named(b"k")) == public
    assert talk.sw(KeyIns.DELETE_KEY, Named(b"k")) == OK
    assert talk.sw(KeyIns.PUBLIC_KEY, Named(b"k")) == NOT_FOUND
    assert talk.sw(KeyIns.DELETE_KEY, Named(b"k")) == NOT_FOUND


@pytest.mark.parametrize("kind", KeyKind)
@pytest.mark.parametrize("use", KeyUse)
def test_a_key_is_only_made_for_what_its_kind_can_do(token: Board, kind: KeyKind, use: KeyUse) -> None:
    body = b"\x01k" + bytes([kind, use, Rule.OPEN])
    assert token.talk.sw(KeyIns.GENERATE_KEY, body) == (OK if (kind, use) in _PAIRS else StatusWord.WRONG_DATA)


def test_ecdsa_is_r_and_s_of_64_bytes_and_verifies(token: Board) -> None:
    public = generate(token.talk, KeyKind.P256, KeyUse.SIGN)
    signature = token.talk.good(KeyIns.SIGN, KeyOrder(b"k", b"a message"))
    assert signing.is_valid(public, signature, b"a message")
    assert not signing.is_valid(public, signature, b"another")


def test_ed25519_verifies(token: Board) -> None:
    public = generate(token.talk, KeyKind.ED25519, KeyUse.SIGN)
    signature = token.talk.good(KeyIns.SIGN, KeyOrder(b"k", bytes(5000)))
    Ed25519PublicKey.from_public_bytes(public).verify(signature, bytes(5000))


def test_x25519_agrees_with_the_other_side(token: Board) -> None:
    public = generate(token.talk, KeyKind.X25519, KeyUse.AGREE)
    other = X25519PrivateKey.generate()
    shared = token.talk.good(KeyIns.AGREE, KeyOrder(b"k", other.public_key().public_bytes_raw()))
    assert shared == other.exchange(X25519PublicKey.from_public_bytes(public))


@pytest.mark.parametrize("form", [PublicFormat.CompressedPoint, PublicFormat.UncompressedPoint])
def test_p256_agrees_with_the_other_side(token: Board, form: PublicFormat) -> None:
    public = generate(token.talk, KeyKind.P256, KeyUse.AGREE)
    other = ec.generate_private_key(ec.SECP256R1())
    point = other.public_key().public_bytes(Encoding.X962, form)
    own = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), public)
    assert token.talk.good(KeyIns.AGREE, KeyOrder(b"k", point)) == other.exchange(ec.ECDH(), own)


@pytest.mark.parametrize(
    ("kind", "bad"),
    [(KeyKind.X25519, bytes(32)), (KeyKind.X25519, b"\x01" + bytes(31)), (KeyKind.X25519, bytes(31)), (KeyKind.X25519, b""),
     (KeyKind.P256, b"\x02" + b"\xff" * 32), (KeyKind.P256, b"\x04" + bytes(64)), (KeyKind.P256, b"\x00"), (KeyKind.P256, b"")],
)  # fmt: skip
def test_a_public_key_that_none_may_be_shared_with_is_refused(token: Board, kind: KeyKind, bad: bytes) -> None:
    generate(token.talk, kind, KeyUse.AGREE)
    assert token.talk.sw(KeyIns.AGREE, KeyOrder(b"k", bad)) == StatusWord.WRONG_DATA


@pytest.mark.parametrize(
    ("message", "mac"),
    [("", "bb1d6929e95937287fa37d129b756746"),
     ("6bc1bee22e409f96e93d7e117393172a", "070a16b46b4d4144f79bdd9dd04a287c"),
     ("6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e5130c81c46a35ce411", "dfa66747de9ae63030ca32611497c827")],
)  # fmt: skip
def test_aes_cmac_is_that_of_rfc_4493(message: str, mac: str) -> None:
    secret = Secret(bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c") + bytes(16))
    slot = Slot(KeyKind.AES128, KeyUse.MAC, Rule.OPEN, bytes(8), secret)
    assert slot.mac(bytes.fromhex(message)).hex() == mac


def test_macs_are_those_of_one_key(token: Board) -> None:
    generate(token.talk, KeyKind.AES128, KeyUse.MAC)
    generate(token.talk, KeyKind.AES128, KeyUse.MAC, b"l")
    order = [token.talk.good(KeyIns.MAC, KeyOrder(name, b"m")) for name in (b"k", b"k", b"l")]
    assert order[0] == order[1] != order[2]
    assert len(order[0]) == 16


@pytest.mark.parametrize(("kind", "use"), _PAIRS)
@pytest.mark.parametrize("ins", [KeyIns.SIGN, KeyIns.AGREE, KeyIns.MAC])
def test_a_key_does_what_it_is_for_and_nothing_else(token: Board, kind: KeyKind, use: KeyUse, ins: KeyIns) -> None:
    generate(token.talk, kind, use)
    point = X25519PrivateKey.generate().public_key().public_bytes_raw()
    sw = token.talk.sw(ins, KeyOrder(b"k", point))
    mine = {KeyUse.SIGN: KeyIns.SIGN, KeyUse.AGREE: KeyIns.AGREE, KeyUse.MAC: KeyIns.MAC}.get(use)
    assert (sw == StatusWord.CONDITIONS_NOT_SATISFIED) == (ins is not mine)


@pytest.mark.parametrize("ins", [KeyIns.SIGN, KeyIns.AGREE, KeyIns.MAC])
def test_a_key_that_is_not_there_does_nothing(token: Board, ins: KeyIns) -> None:
    assert token.talk.sw(ins, KeyOrder(b"k", b"")) == NOT_FOUND
    assert token.talk.sw(ins, b"\x01k") == StatusWord.WRONG_DATA
    assert token.talk.sw(ins, KeyOrder(b"k", b""), p1=1) == StatusWord.WRONG_P1_P2


@pytest.mark.attack("D5")
def test_no_command_gives_a_key_away(token: Board) -> None:
    talk = token.talk
    for number, (kind, use) in enumerate(_PAIRS):
        generate(talk, kind, use, b"k%d" % number)
    secrets = [Slot.decode(value).secret[:16] for value in token.cells.cells.values()]
    assert len(set(secrets)) == len(_PAIRS)
    for ins in KeyIns:
        for number in range(len(_PAIRS)):
            for body in (Named(b"k%d" % number), KeyOrder(b"k%d" % number, b"m"), b""):
                if ins is not KeyIns.DELETE_KEY:
                    talk.send(ins, body)
    said = b"".join(response.data for response in talk.said)
    assert len(said) > 1000
    assert [secret for secret in secrets if bytes(secret) in said] == []


def test_a_key_is_not_shown_by_repr() -> None:
    slot = Slot.generate(KeyKind.P256, KeyUse.SIGN, Rule.OPEN, bytes(8))
    assert "Secret(32 bytes)" in repr(slot)
    assert slot.secret.hex() not in repr(slot)


def test_there_are_so_many_slots(token: Board) -> None:
    for number in range(96):
        generate(token.talk, KeyKind.AES128, KeyUse.MAC, b"%d" % number)
    one_more = GenerateKey(b"k", KeyKind.AES128, KeyUse.MAC, Rule.OPEN)
    assert token.talk.sw(KeyIns.GENERATE_KEY, one_more) == StatusWord.NOT_ENOUGH_MEMORY
    assert token.talk.ask(KeyList, KeyIns.LIST_KEYS).free == 0
    assert token.talk.sw(KeyIns.DELETE_KEY, Named(b"7")) == OK
    assert token.talk.sw(KeyIns.GENERATE_KEY, one_more) == OK


def test_a_key_that_could_not_be_stored_is_not_there(token: Board) -> None:
    token.cells.broken = True
    order = GenerateKey(b"k", KeyKind.P256, KeyUse.SIGN, Rule.OPEN)
    assert token.talk.sw(KeyIns.GENERATE_KEY, order) == StatusWord.MEMORY_FAILURE
    assert token.talk.sw(KeyIns.PUBLIC_KEY, Named(b"k")) == NOT_FOUND


def test_keys_are_there_after_a_new_start(token: Board) -> None:
    public = generate(token.talk, KeyKind.P256, KeyUse.SIGN)
    again = made(KeyModule.COMPUTING, cells=token.cells)
    assert signing.is_valid(public, again.talk.good(KeyIns.SIGN, KeyOrder(b"k", b"m")), b"m")


# --- random


@pytest.mark.parametrize("count", [1, 8, 255, 0])
def test_random_numbers_are_as_long_as_asked_for_and_never_alike(token: Board, count: int) -> None:
    drawn = [token.talk.good(KeyIns.RANDOM, p2=count) for _ in range(2)]
    assert [len(one) for one in drawn] == [count or 256] * 2
    assert count == 1 or drawn[0] != drawn[1]


def test_random_takes_no_data_and_no_p1(token: Board) -> None:
    assert token.talk.sw(KeyIns.RANDOM, b"x", p2=1) == StatusWord.WRONG_LENGTH
    assert token.talk.sw(KeyIns.RANDOM, p1=1, p2=1) == StatusWord.WRONG_P1_P2


# --- counters


def count(talk: Talk, step: CounterStep, name: bytes = b"taps") -> int:
    return talk.ask(CounterValue, KeyIns.COUNTER, Named(name), p1=step).value


def create(talk: Talk, name: bytes = b"taps", rule: Rule = Rule.OPEN) -> int:
    return talk.sw(KeyIns.COUNTER, NewCounter(name, rule), p1=CounterStep.CREATE)


def test_a_counter_counts(token: Board) -> None:
    talk = token.talk
    assert talk.sw(KeyIns.COUNTER, Named(b"taps")) == NOT_FOUND
    assert create(talk) == OK
    assert [count(talk, CounterStep.READ), count(talk, CounterStep.ADVANCE), count(talk, CounterStep.READ)] == [0, 1, 1]


@pytest.mark.attack("D6")
def test_a_counter_cannot_be_made_anew(token: Board) -> None:
    create(token.talk)
    count(token.talk, CounterStep.ADVANCE)
    assert create(token.talk) == StatusWord.ALREADY_EXISTS
    for ins in (KeyIns.WIPE, KeyIns.DELETE, KeyIns.DELETE_KEY):
        token.talk.send(ins, b"" if ins is KeyIns.WIPE else Named(b"taps"))
    assert count(token.talk, CounterStep.READ) == 1


@pytest.mark.attack("D6")
def test_a_counter_that_could_not_be_written_did_not_count(token: Board) -> None:
    create(token.talk)
    token.cells.broken = True
    assert token.talk.sw(KeyIns.COUNTER, Named(b"taps"), p1=CounterStep.ADVANCE) == StatusWord.MEMORY_FAILURE
    token.cells.broken = False
    assert count(token.talk, CounterStep.ADVANCE) == 1


def test_a_counter_at_its_end_stays_there(token: Board) -> None:
    create(token.talk)
    stored = token.cells.cells[b"counter/taps"]
    token.cells.cells[b"counter/taps"] = stored[:-8] + b"\xff" * 8
    assert count(token.talk, CounterStep.READ) == 2**64 - 1
    advance = token.talk.sw(KeyIns.COUNTER, Named(b"taps"), p1=CounterStep.ADVANCE)
    assert (advance, count(token.talk, CounterStep.READ)) == (StatusWord.CONDITIONS_NOT_SATISFIED, 2**64 - 1)


def test_there_are_so_many_counters(token: Board) -> None:
    created = [create(token.talk, b"%d" % number) for number in range(17)]
    assert created == [OK] * 16 + [StatusWord.NOT_ENOUGH_MEMORY]


@pytest.mark.parametrize(("p1", "p2"), [(3, 0), (255, 0), (0, 1)])
def test_counters_know_three_steps(token: Board, p1: int, p2: int) -> None:
    assert token.talk.sw(KeyIns.COUNTER, Named(b"taps"), p1=p1, p2=p2) == StatusWord.WRONG_P1_P2


@given(st.lists(st.booleans(), max_size=30))
def test_a_counter_never_goes_back_whatever_starts_in_between(starts: list[bool]) -> None:
    board = made(KeyModule.COMPUTING)
    create(board.talk)
    values = []
    for is_new in starts:
        if is_new:
            board = made(KeyModule.COMPUTING, cells=board.cells)
        values.append(count(board.talk, CounterStep.ADVANCE))
    assert values == list(range(1, len(starts) + 1))


# --- rules


@pytest.mark.attack("D5")
@pytest.mark.parametrize("rule", [Rule.CHANNEL, Rule.PEER, Rule.CREATOR])
def test_keys_and_counters_are_for_whom_their_rule_says(board: Board, rule: Rule) -> None:
    talk = board.talk.as_peer(PEER)
    generate(talk, KeyKind.P256, KeyUse.SIGN, rule=rule)
    assert create(talk, rule=rule) == OK
    tried: dict[str, Callable[[], Talk]] = {
        "plain": board.talk.plain,
        "channel": board.talk.in_channel,
        "other": lambda: board.talk.as_peer(OTHER_PEER),
        "peer": lambda: board.talk.as_peer(PEER),
    }
    may = {Rule.CHANNEL: {"channel", "other", "peer"}, Rule.PEER: {"other", "peer"}, Rule.CREATOR: {"peer"}}[rule]
    for who, come in tried.items():
        come()
        expected = OK if who in may else DENIED
        assert talk.sw(KeyIns.SIGN, KeyOrder(b"k", b"m")) == expected
        assert talk.sw(KeyIns.PUBLIC_KEY, Named(b"k")) == expected
        assert talk.sw(KeyIns.COUNTER, Named(b"taps"), p1=CounterStep.ADVANCE) == expected
        assert len(talk.ask(KeyList, KeyIns.LIST_KEYS).keys) == (who in may)
        if expected == DENIED:
            assert talk.sw(KeyIns.DELETE_KEY, Named(b"k")) == DENIED


@pytest.mark.attack("D5")
@pytest.mark.parametrize("rule", [Rule.CHANNEL, Rule.PEER, Rule.CREATOR])
def test_nobody_makes_a_key_or_counter_that_he_could_not_use(board: Board, rule: Rule) -> None:
    order = GenerateKey(b"k", KeyKind.P256, KeyUse.SIGN, rule)
    assert board.talk.sw(KeyIns.GENERATE_KEY, order) == DENIED
    assert create(board.talk, rule=rule) == DENIED
    assert not board.cells.cells


@pytest.mark.attack("D5")
def test_strangers_leave_slots_and_counters_for_peers(board: Board) -> None:
    talk = board.talk.in_channel()
    orders = [GenerateKey(b"%d" % number, KeyKind.AES128, KeyUse.MAC, Rule.CHANNEL) for number in range(33)]
    assert [talk.sw(KeyIns.GENERATE_KEY, order) for order in orders] == [OK] * 32 + [StatusWord.NOT_ENOUGH_MEMORY]
    assert [create(talk, b"%d" % number) for number in range(9)] == [OK] * 8 + [StatusWord.NOT_ENOUGH_MEMORY]
    peer = board.talk.as_peer(PEER)
    for number in range(64):
        generate(peer, KeyKind.AES128, KeyUse.MAC, b"peer %d" % number, Rule.CREATOR)
    assert [create(peer, b"peer %d" % number, Rule.PEER) for number in range(8)] == [OK] * 8
    assert peer.ask(KeyList, KeyIns.LIST_KEYS).free == 0
