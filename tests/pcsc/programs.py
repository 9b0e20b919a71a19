# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Other people's programs that send APDUs to the card in the first slot."""

from __future__ import annotations

import re
import subprocess

from tests.pcsc.slots import PATIENCE, READERS


def opensc(*apdus: bytes) -> list[bytes]:
    """Send APDUs by OpenSC and return the answers with their status words."""
    options = [option for apdu in apdus for option in ("-s", apdu.hex(":").upper())]
    command = ["opensc-tool", "--reader", READERS[0], "--card-driver", "default", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    answers = []
    for chunk in done.stdout.split("Sending: ")[1:]:
        said = re.search(r"Received \(SW1=0x(\w\w), SW2=0x(\w\w)\)(.*)", chunk, re.DOTALL)
        assert said, chunk
        # three characters a byte in hexadecimal, then one a byte as text
        data = "".join(line[: len(line) // 4 * 3] for line in said[3].lstrip(":").splitlines())
        answers.append(bytes.fromhex(data) + bytes.fromhex(said[1] + said[2]))
    return answers


def scriptor(*apdus: bytes) -> list[bytes]:
    """Send APDUs by pcsc-tools' scriptor and return the answers with their status words."""
    script = "".join(f"{apdu.hex(' ').upper()}\n" for apdu in apdus)
    done = subprocess.run(
        ["scriptor", "-r", READERS[0], "-p", "T=1"], input=script, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    joined = re.sub(r"\n(?=[0-9A-F]{2}( |$))", " ", done.stdout)  # long answers go over several lines
    return [bytes.fromhex(line[1:].partition(":")[0]) for line in joined.splitlines() if line.startswith("<")]
