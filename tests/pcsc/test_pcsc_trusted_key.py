# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The Key as a card in the PC/SC service: other people's programs store in it, sign with it and ask its user."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.commands import KEY_NAME, select
from protocol.key_commands import (
    GenerateKey,
    KeyFci,
    KeyIns,
    KeyKind,
    KeyModule,
    KeyOrder,
    KeyUse,
    Question,
    QuestionNumber,
    QuestionState,
    ReadObject,
    Reply,
    Rule,
    WriteObject,
    key_command,
)
from protocol.signing import is_valid
from protocol.wire import Wire
from tests.end_to_end.commands import Running, tap
from tests.pcsc.programs import opensc, scriptor
from tests.pcsc.slots import Service, wait_for_card, wait_for_no_card

PROGRAM = "wallet.trusted_key"
SELECT = select(KEY_NAME).encode()
_OK = b"\x90\x00"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a Key that is a plain token."""
    home = tmp_path_factory.mktemp("key")
    assert tap(PROGRAM, "init", "--modules", "storage,computing,interaction", home=home).code == 0
    return home


@pytest.fixture(scope="module")
def key(service: Service, home: Path) -> Iterator[Running]:
    with Running(PROGRAM, "serve", "vpcd:", "--json", home=home) as running:
        running.wait_for('"ready"')
        wait_for_card()
        yield running
    wait_for_no_card()


def _command(ins: KeyIns, body: Wire | bytes = b"", *, p2: int = 0) -> bytes:
    return key_command(ins, body, p2=p2).encode()


@pytest.mark.parametrize("program", [opensc, scriptor])
def test_the_key_says_who_it_is(key: Running, program: object) -> None:
    assert callable(program)
    (answer,) = program(SELECT)
    assert answer.endswith(_OK)
    fci = KeyFci.decode(answer[:-2])
    assert (fci.name, fci.offer.modules) == (KEY_NAME, (KeyModule.STORAGE, KeyModule.COMPUTING, KeyModule.INTERACTION))


def test_one_program_stores_what_another_reads(key: Running) -> None:
    written = scriptor(SELECT, _command(KeyIns.WRITE, WriteObject(b"note", Rule.OPEN, b"kept")))
    assert written[1:] == [_OK]
    assert opensc(SELECT, _command(KeyIns.READ, ReadObject(b"note", 0, 0)))[1:] == [b"kept" + _OK]


def test_a_program_signs_with_a_key_that_stays(key: Running) -> None:
    made, signed = opensc(
        SELECT,
        _command(KeyIns.GENERATE_KEY, GenerateKey(b"k", KeyKind.P256, KeyUse.SIGN, Rule.OPEN)),
        _command(KeyIns.SIGN, KeyOrder(b"k", b"message")),
    )[1:]
    assert is_valid(made[:-2], signed[:-2], b"message")


@pytest.mark.requirement("K4")
def test_a_program_that_ends_takes_its_question_with_it(key: Running, home: Path) -> None:
    asked = scriptor(SELECT, _command(KeyIns.ASK, Question(60, "Sure?")), _command(KeyIns.POLL, QuestionNumber(1)))
    assert [QuestionState.decode(answer[:-2]).reply for answer in asked[1:]] == [Reply.PENDING, Reply.PENDING]
    (gone,) = scriptor(SELECT, _command(KeyIns.POLL, QuestionNumber(1)))[1:]
    assert gone == b"\x6a\x88"
    assert tap(PROGRAM, "press", "ok", home=home).out == "nothing\n"


@pytest.mark.requirement("K4")
def test_an_event_of_the_users_is_announced_to_any_program(key: Running, home: Path) -> None:
    assert [tap(PROGRAM, "press", button, home=home).out for button in ("down", "ok")] == ["menu\n", "queued\n"]
    drawn, fetched, after = opensc(
        SELECT, _command(KeyIns.RANDOM, p2=4), _command(KeyIns.FETCH), _command(KeyIns.CLEAR)
    )[1:]
    assert (len(drawn), drawn[-2:].hex(), fetched.hex(), after) == (6, "910b", "d009810301f100820281829000", _OK)


def test_odd_commands_get_status_words_and_the_key_lives_on(key: Running) -> None:
    odd = {"80FF000000": "6D00", "84DA000000": "6E00", "00DA000000": "6E00", "80DA010000": "6A86", "80D0000000": "6A80"}
    answers = scriptor(SELECT, *map(bytes.fromhex, odd), SELECT)
    assert [answer.hex().upper() for answer in answers[1:-1]] == list(odd.values())
    assert answers[-1] == answers[0]
