# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""What a link costs for one APDU, against the same link without our part in it; and a tap by link."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from console.home import Home
from lab.demo import LINKS, free_udp_port, open_link
from lab.echo import ANSWER, BARE_NFC, NAIVE_VPCD, EchoProcess
from lab.pcscd import PcscService
from lab.processes import WalletProcess
from pos.terminal import Terminal
from protocol.errors import MissingOnMachineError, TapLabError
from protocol.money import Amount
from protocol.transport import pcsc
from protocol.transport.base import CardLink
from protocol.transport.nfc import NfcLink, open_radio
from protocol.transport.pcsc import PcscLink

_COMMAND = bytes.fromhex("00A4040008") + bytes(8) + b"\0"
_SLOTS = ("127.0.0.1:35963", "127.0.0.1:35964")
_READERS = ("Virtual PCD 00 00", "Virtual PCD 00 01")
_APDUS = 100
_NAIVE_APDUS = 40
_NFC_APDUS = 400
_TAPS = 15
_FRAME_SECONDS = 1.0


def measure_vpcd() -> dict[str, Any]:
    """Time an APDU through pcscd to the same card with and without quick ACKs; null where PC/SC cannot be used."""
    try:
        return _measure_vpcd()
    except MissingOnMachineError as error:
        return {"vpcd_apdu_ms_p50": None, "vpcd_naive_apdu_ms_p50": None, "vpcd_speedup": None, "missing": str(error)}


def _measure_vpcd() -> dict[str, Any]:
    pcsc.require()
    with ExitStack() as stack:
        stack.enter_context(PcscService())
        stack.enter_context(EchoProcess(f"vpcd:{_SLOTS[0]}"))
        stack.enter_context(EchoProcess(f"{NAIVE_VPCD}{_SLOTS[1]}"))
        ours, naive = (_apdu(stack.enter_context(PcscLink(reader))) for reader in _READERS)
        fast, slow = _median_ms(ours, _APDUS), _median_ms(naive, _NAIVE_APDUS)
    return {
        "vpcd_apdu_ms_p50": round(fast, 3),
        "vpcd_naive_apdu_ms_p50": round(slow, 3),
        "vpcd_speedup": round(slow / fast, 1),
    }


def measure_nfc() -> dict[str, Any]:
    """Time an APDU over nfcpy's UDP device, and in turn with it a bare nfcpy echo of the same bytes."""
    ours, theirs = (f"udp:127.0.0.1:{free_udp_port()}" for _ in range(2))
    with ExitStack() as stack:
        stack.enter_context(EchoProcess(f"nfc:{ours}"))
        stack.enter_context(EchoProcess(f"{BARE_NFC}{theirs}"))
        frontend = open_radio(theirs).frontend
        stack.callback(frontend.close)
        apdu, bare = _medians_ms(_apdu(stack.enter_context(NfcLink(ours))), _bare_exchange(frontend), _NFC_APDUS)
    return {
        "nfc_udp_apdu_ms_p50": round(apdu, 3),
        "nfc_udp_echo_ms_p50": round(bare, 3),
        "nfc_udp_over_echo": round(apdu / bare, 2),
    }


def _bare_exchange(frontend: Any) -> Callable[[], None]:
    """Return what lets nfcpy alone carry the bytes of an APDU to a card and back."""
    import nfc.clf

    target = None
    while target is None:  # the card may not listen yet
        target = frontend.sense(nfc.clf.RemoteTarget("106A"))
    numbers = itertools.count()

    def exchange() -> None:
        number = bytes([next(numbers) & 0xFF])
        if frontend.exchange(number + _COMMAND, _FRAME_SECONDS)[:1] != number:
            raise TapLabError("the bare echo is out of step")

    return exchange


def _apdu(link: CardLink) -> Callable[[], None]:
    """Return what sends an APDU over `link` and gets the answer."""
    link.activate()

    def exchange() -> None:
        if link.transceive(_COMMAND) != ANSWER:
            raise TapLabError("the echo card answered something else")

    return exchange


def _medians_ms(one: Callable[[], None], other: Callable[[], None], count: int) -> tuple[float, float]:
    """Time two things in turn, so that whatever the machine does meets both."""
    one()
    other()
    both = [(_seconds(one), _seconds(other)) for _ in range(count)]
    first, second = (1000 * statistics.median(times) for times in zip(*both, strict=True))
    return first, second


def _median_ms(step: Callable[[], None], count: int) -> float:
    step()
    return 1000 * statistics.median(_seconds(step) for _ in range(count))


def _seconds(step: Callable[[], None]) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def measure_taps(home: Home) -> dict[str, float | None]:
    """Time whole taps over each link, null for one that cannot be used here; the wallet needs cards for all of them."""
    return {name: _tap_ms(home, name) for name in LINKS}


def _tap_ms(home: Home, name: str) -> float | None:
    try:
        return round(_time_taps(home, name), 2)
    except MissingOnMachineError:
        return None


def _time_taps(home: Home, name: str) -> float:
    amount = Amount.parse("0.01", "EUR")
    with ExitStack() as stack:
        ends = open_link(name, home, stack)
        stack.enter_context(WalletProcess(home.path, ends.card))
        terminal = stack.enter_context(Terminal.open(home.path))

        def tap() -> None:
            outcome = terminal.charge(amount, ends.terminal)
            if not outcome.approved:
                raise TapLabError(f"a tap over {name} was not approved: {outcome}")

        return _median_ms(tap, _TAPS)
