# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""A Key in memory, with the modules that are asked for, a channel that any peer may open, and a clock that stands still."""

from __future__ import annotations

from typing import NamedTuple

from protocol.key_commands import KeyModule
from tests.trusted_key.talk import Clock, MemoryCells, OpenChannel, Talk
from wallet.card import Card
from wallet.trusted_key.key import assemble
from wallet.trusted_key.panel import Panel


class Board(NamedTuple):
    """A Key on the table, and somebody who talks to it."""

    talk: Talk
    panel: Panel
    cells: MemoryCells
    clock: Clock


def made(*modules: KeyModule, cells: MemoryCells | None = None) -> Board:
    cells, clock = cells or MemoryCells(), Clock()
    panel = Panel(clock)
    card = Card([assemble(cells, modules, panel, clock, channel=lambda _: OpenChannel())])
    card.activate()
    talk = Talk(card)
    talk.select()
    return Board(talk, panel, cells, clock)
