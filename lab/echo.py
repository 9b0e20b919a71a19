# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Cards that only echo, each a process of its own: what a link costs without a wallet behind it."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from typing import Any

from protocol.closing import Closing
from protocol.transport.base import CardHandler, CardPort
from protocol.transport.opening import open_card_end
from protocol.transport.socket_link import vpcd_port

ANSWER = bytes(20) + bytes.fromhex("9000")
_STOP_SECONDS = 5.0
_FRAME_SECONDS = 10.0
NAIVE_VPCD = "naive-vpcd:"
BARE_NFC = "bare-nfc:"


class EchoProcess(Closing):
    """One echo card at a link: a card's URL, `naive-vpcd:HOST:PORT` or `bare-nfc:udp:HOST:PORT`."""

    def __init__(self, link: str) -> None:
        """Start it; it is there when it prints a line."""
        self._process = subprocess.Popen([sys.executable, "-m", "lab.echo", link], stdout=subprocess.PIPE, text=True)
        if self._process.stdout is not None:
            self._process.stdout.readline()

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate(timeout=_STOP_SECONDS)


class _Echo:
    """A card that gives the same answer to everything."""

    def activate(self) -> None:
        """Nothing to reset."""

    def deactivate(self) -> None:
        """Nothing to forget."""

    def process(self, apdu: bytes) -> bytes:
        """Return the answer."""
        return ANSWER


def _open(link: str) -> CardPort:
    if link.startswith(NAIVE_VPCD):
        return vpcd_port(link.removeprefix(NAIVE_VPCD), quick_ack=False)
    return open_card_end(link)


def _serve_bare(path: str) -> None:
    """Echo frames with nfcpy alone: no blocks, no state."""
    import nfc.clf

    frontend = nfc.clf.ContactlessFrontend(path)
    target: Any = None
    wanted = nfc.clf.LocalTarget(
        "106A", sens_res=bytearray.fromhex("0400"), sdd_res=bytearray.fromhex("08010203"), sel_res=bytearray([0x20])
    )
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while target is None:
        target = frontend.listen(wanted, 1.0)
    with contextlib.suppress(nfc.clf.CommunicationError):
        frame = target.tt2_cmd
        while True:
            frame = frontend.exchange(frame[:1] + ANSWER, _FRAME_SECONDS)


def main() -> None:
    """Be one echo card."""
    link = sys.argv[1]
    if link.startswith(BARE_NFC):
        _serve_bare(link.removeprefix(BARE_NFC))
        return
    port, card = _open(link), _Echo()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    served: CardHandler = card
    port.serve(served)


if __name__ == "__main__":
    main()
