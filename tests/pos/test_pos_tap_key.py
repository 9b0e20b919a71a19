# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The key of a tap: distinct even when the random generator repeats itself (attack F3, pre-play)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lab.fixtures import Laboratory
from pos import tap_key
from pos.journal import Journal
from pos.terminal import Terminal, TerminalOptions
from protocol.apdu import Command
from protocol.commands import Ins
from protocol.messages import GetVirtualCard, RelayCheck
from protocol.money import Amount
from protocol.secret import Secret
from protocol.transport.trace import TracingLink
from tests.end_to_end.parties import link_to, terminal_like

SECRET = Secret(bytes(range(32)))
OTHER = Secret(bytes(32))


def repeat(size: int) -> bytes:
    return b"\x55" * size


def made(secret: Secret, number: int) -> tuple[bytes, bytes]:
    key, challenge = tap_key.make(secret, number)
    return key.public_key().public_bytes_raw(), challenge


@pytest.mark.attack("F3")
def test_a_repeating_random_generator_still_gives_a_new_key_for_each_tap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "urandom", repeat)
    taps = [made(SECRET, number) for number in range(100)]
    assert len({key for key, _ in taps}) == len({challenge for _, challenge in taps}) == 100


def test_two_terminals_with_one_random_generator_share_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "urandom", repeat)
    assert set(made(SECRET, 1)).isdisjoint(made(OTHER, 1))


def test_a_repeated_number_still_gives_a_new_key() -> None:
    assert set(made(SECRET, 1)).isdisjoint(made(SECRET, 1))


def test_key_and_challenge_have_their_lengths() -> None:
    key, challenge = made(SECRET, 1)
    assert (len(key), len(challenge)) == (32, 8)


@pytest.mark.attack("F3")
def test_a_terminal_with_a_repeating_random_generator_repeats_nothing_on_the_air(
    laboratory: Laboratory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identity = terminal_like(laboratory.home.path)
    monkeypatch.setattr(os, "urandom", repeat)
    said: list[tuple[bytes, bytes]] = []
    for _ in range(3):  # each time as a process that starts anew
        link = TracingLink(link_to(laboratory.phone.card))
        with Terminal(identity, Journal(tmp_path), TerminalOptions(timeout=1.0)) as terminal:
            assert terminal.charge(Amount.parse("0.01", "EUR"), link).approved
        said.append(_fresh_parts(link))
    challenges, keys = zip(*said, strict=True)
    assert len(set(challenges)) == len(set(keys)) == 3


def _fresh_parts(link: TracingLink) -> tuple[bytes, bytes]:
    commands = {command.ins: command for command in (Command.decode(one.command) for one in link.exchanges)}
    challenge = RelayCheck.decode(commands[Ins.RELAY_CHECK].data).value
    return challenge, GetVirtualCard.decode(commands[Ins.GET_VIRTUAL_CARD].data).tap_key
