# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""A real reader with a phone, card or tag on it. Lay one there before each run."""

from __future__ import annotations

from pos.probe import probe
from protocol.commands import DEFAULT_NAME, select
from protocol.transport.base import CardLink
from protocol.transport.chaining import TerminalChaining

_TIMEOUT = 20.0


def test_what_lies_on_the_reader_is_described(reader: CardLink) -> None:
    finding, _ = probe(reader, _TIMEOUT)
    assert finding.atr or finding.foreign


def test_ten_activations_in_a_row(reader: CardLink) -> None:
    for _ in range(10):
        assert reader.activate(_TIMEOUT).atr
        reader.deactivate()


def test_a_select_is_answered(reader: CardLink) -> None:
    activation = reader.activate(_TIMEOUT)
    card = TerminalChaining(reader.transceive, extended=activation.takes_extended_length)
    assert card.exchange(select(DEFAULT_NAME)).sw
