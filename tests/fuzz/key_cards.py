# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""What a Key's card promises whoever talks to it: each input is commands, presses and seconds, in any order."""

from __future__ import annotations

from protocol.apdu import MAX_NE, Command
from protocol.commands import KEY_NAME, select
from protocol.key_commands import (
    BeginObject,
    CounterStep,
    GenerateKey,
    KeyIns,
    KeyKind,
    KeyModule,
    KeyOrder,
    KeyUse,
    Named,
    NewCounter,
    Question,
    QuestionNumber,
    ReadObject,
    Rule,
    WriteObject,
    key_command,
)
from protocol.status import StatusWord
from protocol.wire import Wire
from tests.fuzz.cutting import chunks, join
from tests.trusted_key.talk import Clock, MemoryCells
from wallet.card import Card
from wallet.trusted_key.key import assemble
from wallet.trusted_key.panel import Effect, Panel
from wallet.trusted_key.screen import COLUMNS, LINES, Button
from wallet.trusted_key.storage import OBJECT, Quota

_QUOTA = Quota(objects=4, object_bytes=200, bytes=400)
_MODULES = (KeyModule.STORAGE, KeyModule.COMPUTING, KeyModule.INTERACTION)
_BUTTONS = tuple(Button)


def check_card(data: bytes) -> str:
    """Expect a status word that is no accident for every APDU; a screen that can be read; never more than there is room for.

    A chunk of one byte presses a button (its last two bits) or lets seconds pass (above 7F).
    """
    cells, clock, confirmed = MemoryCells(), Clock(), 0
    panel = Panel(clock)
    card = Card([assemble(cells, _MODULES, panel, clock, quota=_QUOTA)])
    card.activate()
    sw = b""
    for chunk in chunks(data):
        if len(chunk) == 1:
            confirmed += _touch(panel, clock, chunk[0])
            continue
        answer = card.process(chunk)
        sw = answer[-2:]
        assert 2 <= len(answer) <= MAX_NE + 2
        assert sw != StatusWord.NO_PRECISE_DIAGNOSIS.to_bytes(2, "big")
        _require_readable(panel)
        objects = [value for _, value in cells.items(OBJECT)]
        assert len(objects) <= _QUOTA.objects
        assert sum(map(len, objects)) <= _QUOTA.bytes + 11 * _QUOTA.objects
    return f"{sw.hex()} {panel.frame.showing} {min(confirmed, 2)} {min(len(cells.cells), 3)}"


def _touch(panel: Panel, clock: Clock, what: int) -> bool:
    """Press a button or let time pass, and return whether that confirmed something: only `ok`, on a question, may."""
    if what > 0x7F:
        clock.tick(what & 0x7F)
        return False
    button, showing = _BUTTONS[what & 3], panel.frame.showing
    effect = panel.press(button)
    assert effect is not Effect.CONFIRMED or (button is Button.OK and showing == "question")
    return effect is Effect.CONFIRMED


def _require_readable(panel: Panel) -> None:
    lines = panel.frame.lines
    assert len(lines) == LINES
    assert all(len(line) == COLUMNS and all(" " <= char <= "~" for char in line) for line in lines)


def _said(ins: KeyIns, body: Wire | bytes = b"", *, p1: int = 0, p2: int = 0) -> bytes:
    return key_command(ins, body, p1=p1, p2=p2).encode()


_SELECT = select(KEY_NAME).encode()
CONVERSATIONS = (
    join(_SELECT, _said(KeyIns.WRITE, WriteObject(b"a", Rule.OPEN, b"x")), _said(KeyIns.READ, ReadObject(b"a", 0, 0)),
         _said(KeyIns.LIST), _said(KeyIns.DELETE, Named(b"a")), _said(KeyIns.WIPE)),
    join(_SELECT, _said(KeyIns.BEGIN, BeginObject(b"a", Rule.OPEN, 2)), _said(KeyIns.APPEND, b"x"),
         _said(KeyIns.APPEND, b"y"), _said(KeyIns.COMMIT)),
    *(join(_SELECT, _said(KeyIns.GENERATE_KEY, GenerateKey(b"k", kind, use, Rule.OPEN)),
           _said(ins, KeyOrder(b"k", bytes([2]) + bytes(31))), _said(KeyIns.LIST_KEYS), _said(KeyIns.DELETE_KEY, Named(b"k")))
      for kind, use, ins in ((KeyKind.P256, KeyUse.AGREE, KeyIns.AGREE), (KeyKind.ED25519, KeyUse.SIGN, KeyIns.SIGN),
                             (KeyKind.AES128, KeyUse.MAC, KeyIns.MAC))),
    join(_SELECT, _said(KeyIns.COUNTER, NewCounter(b"c", Rule.OPEN), p1=CounterStep.CREATE),
         _said(KeyIns.COUNTER, Named(b"c"), p1=CounterStep.ADVANCE), _said(KeyIns.RANDOM, p2=8)),
    join(_SELECT, _said(KeyIns.ASK, Question(30, "Sure?")), b"\0", _said(KeyIns.POLL, QuestionNumber(1)),
         _said(KeyIns.SHOW, Question(0, "text")), _said(KeyIns.CLEAR), b"\3", b"\0", _said(KeyIns.FETCH), b"\xff"),
    join(_SELECT, Command(0x94, KeyIns.LIST, 0, 0, b"").encode(), Command(0x84, KeyIns.LIST, 0, 0, bytes(8), 256).encode()),
)  # fmt: skip
