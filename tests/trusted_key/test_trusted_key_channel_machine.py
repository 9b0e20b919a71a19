# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""A link that does with commands and answers what it likes: what is done was said, once and in its order."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from protocol.apdu import Command, Response
from protocol.errors import VerificationError
from protocol.status import StatusWord
from tests.trusted_key.small_key import ECHO, Bench

_ERROR = Response(b"", StatusWord.CONDITIONS_NOT_SATISFIED)
_REFUSED = Response(b"", StatusWord.SECURITY_STATUS_NOT_SATISFIED)


class HostileLink(RuleBasedStateMachine):
    """One channel; every message is kept, and may be carried, kept back, changed, or sent again at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench()
        self.channel = self.bench.opened()
        self.said: list[bytes] = []
        self.secured: list[Command] = []
        self.answers: list[Response] = [_ERROR, Response(b"", StatusWord.OK)]
        self.waiting = False

    def _is_lively(self) -> bool:
        return self.channel.is_open

    def _waits(self) -> bool:
        return self.waiting

    @precondition(_is_lively)
    @rule()
    def say(self) -> None:
        self.said.append(b"command %d" % len(self.said))
        self.secured.append(self.channel.wrap(Command(0x80, ECHO, 0, 0, self.said[-1], 256)))
        self.waiting = True

    @precondition(_waits)
    @rule()
    def carry(self) -> None:
        self._send(self.secured[-1])

    @precondition(lambda self: self.secured)
    @rule(data=st.data())
    def carry_again(self, data: st.DataObject) -> None:
        self._send(data.draw(st.sampled_from(self.secured)))

    @precondition(lambda self: self.secured)
    @rule(data=st.data())
    def carry_changed(self, data: st.DataObject) -> None:
        command = data.draw(st.sampled_from(self.secured))
        changed = bytearray(command.data)
        changed[data.draw(st.integers(0, len(changed) - 1))] ^= data.draw(st.integers(1, 255))
        assert self._send(command.with_data(bytes(changed))).sw is not StatusWord.OK

    @precondition(_waits)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        response = data.draw(st.sampled_from(self.answers))
        self.waiting = False
        try:
            heard = self.channel.unwrap(response)
        except VerificationError:
            assert not self.channel.is_open
            return
        if heard.sw is not StatusWord.OK:
            assert heard in (_ERROR, _REFUSED), "a status word that says of nothing that it was done"
            return
        assert heard == Response(self.said[-1], StatusWord.OK)
        assert self.bench.key.echoed[-1] == self.said[-1], "what was answered was done"

    def _send(self, command: Command) -> Response:
        response = self.bench.send(command)
        self.answers.append(response)
        return response

    @invariant()
    def what_is_done_was_said_in_this_order(self) -> None:
        done = self.bench.key.echoed
        assert done == self.said[: len(done)]


HostileLink.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestHostileLink = pytest.mark.requirement("K1")(HostileLink.TestCase)
