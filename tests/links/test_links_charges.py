# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Charges over every link: the card leaves at each moment, wallet and terminal start again, two readers work at once."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab import processes
from pos.journal import Journal, State
from pos.outcome import Outcome, OutcomeKind
from pos.terminal import Terminal, TerminalOptions
from protocol.commands import Ins
from protocol.money import Amount
from protocol.transport.base import NO_CARD_TIMEOUT, Activation, CardLink
from tests.end_to_end.parties import HookedCard, ToldLaboratory, terminal_like
from tests.links.kinds import LINKS, PATIENCE, Kept, Laid, LinkKind, Rig, params_of, rig_of

AMOUNT = Amount.parse("0.10", "EUR")
OPTIONS = TerminalOptions(timeout=PATIENCE, again=0)
COMMANDS = (Ins.SELECT, Ins.RELAY_CHECK, Ins.GET_VIRTUAL_CARD, Ins.DEBIT, Ins.CONFIRM)
TORN, APPROVED = OutcomeKind.TORN, OutcomeKind.APPROVED


@pytest.fixture(scope="module")
def kept() -> Iterator[Kept]:
    with Kept() as kept:
        yield kept


@pytest.fixture(params=params_of(LINKS))
def rig(request: pytest.FixtureRequest, tmp_path: Path, kept: Kept) -> Iterator[Rig]:
    with rig_of(request, request.param, tmp_path, kept) as rig:
        yield rig


@pytest.fixture(scope="module")
def stocked(laboratory: ToldLaboratory) -> ToldLaboratory:
    """A wallet with a card for each tap of this module: tests tap faster than a wallet refills."""
    laboratory._stock()
    return laboratory


@dataclass
class WatchedLink(CardLink):
    """A link that tells `before` of each command, and `after` when its answer has come."""

    link: CardLink
    before: Callable[[int], None]
    after: Callable[[int], None]

    @property
    def max_data(self) -> int:
        return self.link.max_data

    def activate(self, timeout: float = NO_CARD_TIMEOUT) -> Activation:
        return self.link.activate(timeout)

    def transceive(self, apdu: bytes) -> bytes:
        self.before(apdu[1])
        answer = self.link.transceive(apdu)
        self.after(apdu[1])
        return answer

    def deactivate(self) -> None:
        self.link.deactivate()

    def close(self) -> None:
        self.link.close()


def _when(wanted: bool, ins: Ins, leave: Callable[[], None]) -> Callable[[int], None]:
    """Return what lets the card leave at command `ins`, if this is the moment that is wanted."""
    return lambda came: leave() if wanted and came == ins else None


EXPECTED = {  # outcome, whether anything was charged, what was deducted, the terminal's journal
    ("after", Ins.GET_VIRTUAL_CARD): (TORN, None, 0, [State.OPEN]),
    ("before", Ins.DEBIT): (TORN, None, 0, [State.OPEN]),
    ("during", Ins.DEBIT): (TORN, None, 10, [State.OPEN]),
    ("after", Ins.DEBIT): (APPROVED, True, 10, [State.APPROVED]),
    ("before", Ins.CONFIRM): (APPROVED, True, 10, [State.APPROVED]),
    ("during", Ins.CONFIRM): (APPROVED, True, 10, [State.APPROVED]),
    ("after", Ins.CONFIRM): (APPROVED, True, 10, [State.APPROVED]),
}


@pytest.mark.parametrize("ins", COMMANDS, ids=lambda ins: ins.name)
@pytest.mark.parametrize("moment", ["before", "during", "after"])
def test_card_that_leaves_never_makes_or_loses_money(
    rig: Rig, stocked: ToldLaboratory, tmp_path: Path, moment: str, ins: Ins
) -> None:
    laid: list[Laid] = []
    card = HookedCard(stocked.phone.card, after=lambda apdu: during(apdu[1]))
    during = _when(moment == "during", ins, lambda: laid[0].close())
    before = _when(moment == "before", ins, rig.take_away)
    after = _when(moment == "after", ins, rig.take_away)
    laid.append(rig.lay(card))
    had = stocked.balance.minor
    with Terminal(terminal_like(stocked.home.path), Journal(tmp_path), OPTIONS) as terminal:
        outcome = terminal.charge(AMOUNT, WatchedLink(rig.link, before, after))
        records = terminal._journal.records()
        has = stocked.balance.minor
        rig.lay(stocked.phone.card)
        assert terminal.charge(AMOUNT, rig.link).kind is APPROVED
    kind, charged, deducted, states = EXPECTED.get((moment, ins), (TORN, False, 0, []))
    assert (outcome.kind, outcome.charged, had - has) == (kind, charged, deducted)
    assert [record.state for record in records] == states
    assert [record.confirmed for record in records] == [(moment, ins) == ("after", Ins.CONFIRM)] * len(states)
    assert has - stocked.balance.minor == AMOUNT.minor


def test_ten_charges_in_a_row_are_approved(rig: Rig, stocked: ToldLaboratory, tmp_path: Path) -> None:
    rig.lay(stocked.phone.card)
    had = stocked.balance.minor
    with Terminal(terminal_like(stocked.home.path), Journal(tmp_path), OPTIONS) as terminal:
        outcomes = [terminal.charge(AMOUNT, rig.link) for _ in range(10)]
    assert [outcome.kind for outcome in outcomes] == [APPROVED] * 10
    assert len({outcome.reference for outcome in outcomes}) == 10  # of a card four digits differ: two may look alike
    assert had - stocked.balance.minor == 10 * AMOUNT.minor


# Two readers, each with a wallet of its own.


@pytest.fixture(params=params_of(LINKS))
def two(request: pytest.FixtureRequest, tmp_path: Path, kept: Kept) -> Iterator[tuple[Rig, Rig]]:
    with (
        rig_of(request, request.param, tmp_path, kept, 0) as one,
        rig_of(request, request.param, tmp_path, kept, 1) as other,
    ):
        yield one, other


@pytest.fixture(scope="module")
def laboratories(made_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[ToldLaboratory]]:
    """Two wallets and two terminals of two homes."""
    folder = tmp_path_factory.mktemp("two")
    with ExitStack() as stack:
        homes = [shutil.copytree(made_home, folder / str(number)) for number in range(2)]
        yield [stack.enter_context(ToldLaboratory(home)) for home in homes]


def test_two_readers_at_once_charge_each_its_own_wallet(
    two: tuple[Rig, Rig], laboratories: list[ToldLaboratory], tmp_path: Path
) -> None:
    amounts = [Amount.parse("1.00", "EUR"), Amount.parse("2.00", "EUR")]
    outcomes: list[list[Outcome]] = [[], []]
    together = threading.Barrier(2, timeout=PATIENCE)

    def charge(number: int) -> None:
        folder = tmp_path / f"terminal {number}"
        folder.mkdir()
        with Terminal(terminal_like(laboratories[number].home.path), Journal(folder), OPTIONS) as terminal:
            for _ in range(5):
                together.wait()
                outcomes[number].append(terminal.charge(amounts[number], two[number].link))

    had = [laboratory.balance.minor for laboratory in laboratories]
    for rig, laboratory in zip(two, laboratories, strict=True):
        rig.lay(laboratory.phone.card)
    charging = [threading.Thread(target=charge, args=(number,)) for number in range(2)]
    for thread in charging:
        thread.start()
    for thread in charging:
        thread.join(5 * PATIENCE)
    assert [[outcome.kind for outcome in several] for several in outcomes] == [[APPROVED] * 5] * 2
    assert [before - one.balance.minor for before, one in zip(had, laboratories, strict=True)] == [500, 1000]


# Processes, as users start them.


@pytest.fixture(params=params_of([kind for kind in LINKS if not kind.one_process]))
def urls(
    request: pytest.FixtureRequest, tmp_path: Path, kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, str]:
    """The URLs of both ends of a link between processes, the terminal's first."""
    kind: LinkKind = request.param
    if kind.service:
        request.getfixturevalue(kind.service)
        kept.empty(0)
    monkeypatch.chdir(tmp_path)
    return kind.ends(tmp_path, 0)


def test_wallet_and_terminal_processes_that_start_again_pay_again(urls: tuple[str, str], home: Path) -> None:
    terminal, wallet = urls
    for _ in range(2):
        with processes.WalletProcess(home, wallet):
            report, code, _ = processes.charge(home, "1.00", "EUR", terminal)
        assert (code, report["outcome"], report["receipt_verified"]) == (0, "approved", True), report
