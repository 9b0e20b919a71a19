# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""What the relay bound of each link catches: RELAY CHECK with added delay, 0 to 50 ms."""

from __future__ import annotations

import statistics
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from console.home import Home
from lab.demo import LINKS, open_link
from lab.processes import WalletProcess
from pos import relay
from pos.relay import RelayCheckResult
from pos.session import CardSession
from protocol.commands import DEFAULT_NAME
from protocol.errors import MissingOnMachineError
from protocol.messages import CHALLENGE_LENGTH
from protocol.transport.base import NO_CARD_TIMEOUT, Activation, CardLink
from protocol.transport.opening import LinkUrl, open_terminal_end
from protocol.transport.trace import TracingLink

DELAYS_MS = (0, 1, 2, 5, 10, 15, 20, 30, 40, 50)
_CHECKS = 20


@dataclass(slots=True)
class _Relay(CardLink):
    """A relay as a terminal sees it: everything arrives, a little later."""

    link: CardLink
    delay: float = 0.0

    def activate(self, timeout: float = NO_CARD_TIMEOUT) -> Activation:
        return self.link.activate(timeout)

    def transceive(self, apdu: bytes) -> bytes:
        time.sleep(self.delay)
        return self.link.transceive(apdu)

    def deactivate(self) -> None:
        self.link.deactivate()

    def close(self) -> None:
        self.link.close()


def measure_relay(home: Home) -> dict[str, Any]:
    """Return, for each link that can be used here, its bound, what it takes undisturbed, and the share caught by delay."""
    return {"relay_sweep": {name: _sweep(home, name) for name in LINKS}}


def _sweep(home: Home, name: str) -> dict[str, Any] | None:
    try:
        with ExitStack() as stack:
            ends = open_link(name, home, stack)
            stack.enter_context(WalletProcess(home.path, ends.card))
            link = _Relay(stack.enter_context(open_terminal_end(ends.terminal)))
            scheme = LinkUrl.parse(ends.terminal).scheme
            checked = {delay: _check(link, scheme, delay) for delay in DELAYS_MS}
    except MissingOnMachineError:
        return None
    undisturbed = [one.excess_ms for one in checked[0]]
    return {
        "bound_ms": checked[0][0].bound_ms,
        "excess_ms_p50": round(statistics.median(undisturbed), 2),
        "excess_ms_max": round(max(undisturbed), 2),
        "caught": {str(delay): sum(one.is_too_late for one in all_of) / _CHECKS for delay, all_of in checked.items()},
    }


def _check(link: _Relay, scheme: str, delay: int) -> list[RelayCheckResult]:
    link.delay = delay / 1000
    return [_check_once(link, scheme) for _ in range(_CHECKS)]


def _check_once(link: _Relay, scheme: str) -> RelayCheckResult:
    traced = TracingLink(link)
    session = CardSession(traced, traced.activate())
    session.select(DEFAULT_NAME)
    seconds = session.relay_check(bytes(CHALLENGE_LENGTH))
    link.deactivate()
    return relay.judge(seconds, traced.exchanges[-1].lengths, scheme, None)
