# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""What docs/trusted-key.md says is what a Key does."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

from protocol.apdu import Response
from protocol.key_commands import KeyFci, KeyModule
from protocol.signing import is_valid
from wallet.trusted_key.computing import MAX_COUNTERS, MAX_KEYS
from wallet.trusted_key.key import STRANGERS, TrustedKey
from wallet.trusted_key.payments import CONFIRMED_SECONDS
from wallet.trusted_key.storage import Quota

_TEXT = (Path(__file__).parents[2] / "docs" / "trusted-key.md").read_text()


def test_the_commands_for_any_pcsc_program_do_what_is_said(tmp_path: Path) -> None:
    apdus = [bytes.fromhex(found.replace(":", "")) for found in re.findall(r"-s ([0-9A-F:]+)", _TEXT)]
    with TrustedKey(tmp_path / "key", ["storage", "computing", "interaction"]) as key:
        key.card.activate()
        selected, made, signed = (Response.decode(key.card.process(apdu)) for apdu in apdus)
    assert KeyFci.decode(selected.data).offer.modules == (
        KeyModule.STORAGE,
        KeyModule.COMPUTING,
        KeyModule.INTERACTION,
    )
    assert is_valid(made.data, signed.data, b"x")


def test_the_example_in_python_prints_what_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    example = _TEXT.split("```python\n")[1].split("```")[0]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(example, {})  # noqa: S102 - it is ours
    said = [line.split("  # ")[1] for line in example.splitlines() if "  # " in line]
    assert printed.getvalue().splitlines() == said


def test_the_room_is_as_said() -> None:
    quota = Quota()
    room = (
        f"{quota.objects} objects, {quota.bytes >> 10} KiB with their names, {MAX_KEYS} keys, {MAX_COUNTERS} counters"
    )
    assert room in _TEXT
    assert f"at most {quota.object_bytes >> 10} KiB" in _TEXT
    least = f"{STRANGERS.objects} objects, {STRANGERS.bytes >> 10} KiB, {MAX_KEYS // 3} keys and {MAX_COUNTERS // 2} counters"
    assert least in " ".join(_TEXT.split())
    assert f"remembered for {CONFIRMED_SECONDS:.0f} seconds" in _TEXT
