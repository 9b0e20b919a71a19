# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The relay bound: what it judges, and what a terminal does about it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.bench_relay import _Relay
from lab.fixtures import Laboratory
from pos import relay
from pos.outcome import OutcomeKind
from pos.relay import RelayPolicy
from pos.terminal import Terminal, TerminalOptions
from protocol.money import Amount
from protocol.transport.air import air_time
from tests.end_to_end.commands import serving, tap

LENGTHS = (14, 10)
EURO = Amount.parse("1.00", "EUR")


def test_the_air_is_taken_off_where_a_radio_carries_the_frames() -> None:
    on_air = air_time((LENGTHS,)).milliseconds
    judged = relay.judge(0.05, LENGTHS, "nfc", 30.0)
    assert judged.excess_ms == pytest.approx(50 - on_air)
    assert relay.judge(0.05, LENGTHS, "socket", 30.0).excess_ms == pytest.approx(50)


def test_a_bound_is_passed_only_beyond_it() -> None:
    assert not relay.judge(0.010, LENGTHS, "socket", 10.0).is_too_late
    assert relay.judge(0.0101, LENGTHS, "socket", 10.0).is_too_late
    assert not relay.judge(0.0, LENGTHS, "pcsc", 0.0).is_too_late


@pytest.mark.parametrize("scheme", ["memory", "socket", "pcsc", "nfc", ""])
def test_every_link_has_a_bound(scheme: str) -> None:
    assert 0 < relay.judge(0.0, LENGTHS, scheme, None).bound_ms <= 30


@pytest.mark.attack("R1")
@pytest.mark.parametrize(
    ("policy", "kind"),
    [
        (RelayPolicy.OFF, OutcomeKind.APPROVED),
        (RelayPolicy.REPORT, OutcomeKind.APPROVED),
        (RelayPolicy.DECLINE, OutcomeKind.NOT_VERIFIED),
    ],
)
def test_a_relayed_card_is_declined_if_the_terminal_is_told_to(
    home: Path, policy: RelayPolicy, kind: OutcomeKind
) -> None:
    with Laboratory(home=home) as laboratory:
        laboratory.terminal.close()
        options = TerminalOptions(timeout=1.0, relay=policy, relay_bound_ms=20.0)
        with Terminal.open(home, options) as terminal:
            assert terminal.charge(EURO, laboratory.link).approved
            relayed = terminal.charge(EURO, _Relay(laboratory.link, 0.03))
        laboratory.terminal = Terminal.open(home)
        assert laboratory.balance.minor == (9800 if kind is OutcomeKind.APPROVED else 9900)
    assert relayed.kind is kind
    assert relayed.relay is not None
    assert relayed.relay.is_too_late
    if kind is OutcomeKind.NOT_VERIFIED:
        assert "relayed" in relayed.reason
        assert relayed.charged is False
        assert [len(pair) for pair in relayed.air.lengths] == [2, 2]  # it never proved itself to this card


def test_the_command_reports_and_declines(home: Path) -> None:
    with serving(home):
        fine = tap("pos", "charge", "1.00", "--relay", "decline", "--relay-bound", "60000", "--json", home=home)
        late = tap("pos", "charge", "1.00", "--relay-bound", "0", "--json", home=home)
        refused = tap("pos", "charge", "1.00", "--relay", "decline", "--relay-bound", "0", "--json", home=home)
    assert (fine.code, fine.json["relay_suspected"], fine.json["relay_bound_ms"]) == (0, False, 60000)
    assert (late.code, late.json["relay_suspected"]) == (0, True)
    assert (refused.code, refused.json["outcome"], refused.json["charged"]) == (14, "not verified", False)


def test_the_command_tears_its_own_tap(home: Path) -> None:
    with serving(home):
        torn = tap("pos", "charge", "1.00", "--fault", "tear@frame:8", "--again", "0", "--json", home=home)
        within = tap("pos", "charge", "1.00", "--fault", "tear@frame:8", "--json", home=home)  # while it settles
        again = tap("pos", "charge", "1.00", "--json", home=home)
        nonsense = tap("pos", "charge", "1.00", "--fault", "melt@frame:8", "--json", home=home)
    assert (torn.code, torn.json["charged"]) == (12, None)
    assert (within.code, within.json["charged"]) == (12, False)
    assert (again.code, len(again.json["settled"])) == (0, 1)
    assert nonsense.code == 2
    assert "is no fault" in nonsense.sentence
