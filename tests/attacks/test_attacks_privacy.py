# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Who listens: two taps of one wallet share nothing that another user's tap does not share too."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.fixtures import Laboratory, Setup
from pos.terminal import Terminal
from protocol.money import Amount
from protocol.transport.trace import TracingLink
from tests.end_to_end.parties import link_to, terminal_like

_WINDOW = 4
_OTHERS = 16
AMOUNT = Amount.parse("37.41", "EUR")


@pytest.fixture(scope="module")
def captures(module_home: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[bytes]]:
    """One wallet tapped at two terminals, and another user's wallet at others, recorded at the link.

    Another user's is recorded often, since the sign of a public key's point is one of two values behind a constant tag.
    """
    heard: dict[str, list[bytes]] = {}
    with (
        Laboratory(home=module_home) as mine,
        Laboratory(Setup(balance="1000.00", cards=64), home=tmp_path_factory.mktemp("other") / "home") as other,
    ):
        taps = [("mine, here", mine), ("mine, there", mine)]
        for name, laboratory in [*taps, *((f"another's {number}", other) for number in range(_OTHERS))]:
            heard[name] = _heard(laboratory, tmp_path_factory.mktemp("terminal"))
    return heard


def _heard(laboratory: Laboratory, folder: Path) -> list[bytes]:
    from pos.journal import Journal

    link = TracingLink(link_to(laboratory.phone.card))
    with Terminal(terminal_like(laboratory.home.path), Journal(folder)) as terminal:
        assert terminal.charge(AMOUNT, link).approved
    return [piece for one in link.exchanges for piece in (one.command, one.answer)]


def _windows(frames: list[bytes]) -> dict[bytes, set[tuple[int, int]]]:
    """Return every string of four bytes with where it stands: (frame, offset)."""
    found: dict[bytes, set[tuple[int, int]]] = {}
    for number, frame in enumerate(frames):
        for at in range(len(frame) - _WINDOW + 1):
            found.setdefault(frame[at : at + _WINDOW], set()).add((number, at))
    return found


def _linking(captures: dict[str, list[bytes]]) -> set[bytes]:
    """Return what both taps of one wallet share and no other user's tap has at the same place."""
    here, there = _windows(captures["mine, here"]), _windows(captures["mine, there"])
    others = [_windows(frames) for name, frames in captures.items() if name.startswith("another")]
    shared = set(here) & set(there)
    assert shared  # the commands' headers, the name, the certificates' tags
    unlike_others = {
        piece for piece in shared if not any(here[piece] & there[piece] & other.get(piece, set()) for other in others)
    }
    everybody = [frames for name, frames in captures.items() if name.startswith("another")]
    return {
        piece
        for piece in unlike_others
        if not all(_is_mostly_constant(piece, places[piece], everybody) for places in (here, there))
    }


def _is_mostly_constant(piece: bytes, places: set[tuple[int, int]], others: list[list[bytes]]) -> bool:
    """Tell whether all but one byte are everybody's at one of its places: that one is alike by chance, and links nothing.

    The places in two taps may be two: each has two public keys behind the same tag, and a key's sign is 02 or 03.
    """

    def is_everybodys(number: int, at: int, value: int) -> bool:
        return all(number < len(one) and at < len(one[number]) and one[number][at] == value for one in others)

    return any(
        sum(is_everybodys(number, at + offset, piece[offset]) for offset in range(_WINDOW)) >= _WINDOW - 1
        for number, at in places
    )


@pytest.mark.attack("N1")
def test_two_taps_of_one_wallet_share_constants_only(captures: dict[str, list[bytes]]) -> None:
    assert _linking(captures) == set()


@pytest.mark.attack("N1")
def test_what_would_link_two_taps_is_found(captures: dict[str, list[bytes]]) -> None:
    mark = bytes.fromhex("DEADBEEF")
    marked = {
        name: [*frames[:-1], frames[-1] + mark] if name.startswith("mine") else frames
        for name, frames in captures.items()
    }
    assert mark in _linking(marked)


@pytest.mark.attack("N1")
def test_neither_amount_nor_number_is_in_a_capture(captures: dict[str, list[bytes]]) -> None:
    forms = [f"{AMOUNT.minor:012d}", f"{AMOUNT.minor:08d}"]
    for frames in captures.values():
        together = b"|".join(frames)
        assert not any(bytes.fromhex(form) in together or form.encode() in together for form in forms)
        assert b"37.41" not in together
        assert b"\x99\x99\x10" not in together  # how this laboratory's card numbers begin
