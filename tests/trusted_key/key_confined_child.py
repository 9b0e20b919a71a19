# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Confines itself to a folder as a Key does, tries to get out, and prints how that went."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from console.ui import print_json
from wallet.environment.lockdown import confine_files
from wallet.trusted_key.key import TrustedKey


def _outcome(step: Callable[[], object]) -> str:
    try:
        step()
    except OSError as error:
        return type(error).__name__
    return "done"


def _in_thread(step: Callable[[], object]) -> str:
    said: list[str] = []
    thread = threading.Thread(target=lambda: said.append(_outcome(step)))
    thread.start()
    thread.join()
    return said[0]


def main() -> None:
    """Take the Key's folder and a file outside from the command line."""
    folder, outside = Path(sys.argv[1]), Path(sys.argv[2])
    with TrustedKey(folder) as key:
        confined = confine_files(folder)
        said = {
            "read outside": _outcome(outside.read_bytes),
            "read outside, in a thread": _in_thread(outside.read_bytes),
            "write outside": _outcome(lambda: outside.write_bytes(b"x")),
            "list outside": _outcome(lambda: list(outside.parent.iterdir())),
            "remove outside": _outcome(outside.unlink),
            "make outside": _outcome(lambda: outside.with_name("new").write_bytes(b"")),
            "run a program": _outcome(lambda: os.posix_spawn("/bin/true", ["true"], {})),
            "read a library": _outcome(lambda: Path(json.__file__).read_bytes()),
            "write a library": _outcome(lambda: Path(json.__file__).open("r+b").close()),
            "write inside": _outcome(lambda: (folder / "new").write_bytes(b"x")),
            "open a socket": _outcome(lambda: socket.socket(socket.AF_INET).close()),
            "press": key.press("down"),
        }
    print_json({"confined": confined, **said})


if __name__ == "__main__":
    main()
