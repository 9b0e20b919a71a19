# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Cards, wallets, terminals and the PC/SC service come and go; a link that comes back is used again."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.fixtures import Laboratory
from pos.outcome import OutcomeKind
from pos.terminal import Terminal, TerminalOptions
from protocol.commands import Ins
from protocol.errors import CardSilentError, LinkUnavailableError, TransportError
from protocol.money import Amount
from protocol.transport.base import CardLink
from protocol.transport.opening import open_card_end, open_terminal_end
from tests.echo_card import EchoCard
from tests.end_to_end.commands import Running, tap
from tests.end_to_end.parties import HookedCard
from tests.pcsc.slots import FIRST, PATIENCE, CardInSlot, Service, wait_for_card, wait_for_no_card


def _tap(link: CardLink, apdu: bytes = bytes(4)) -> bytes:
    link.activate(PATIENCE)
    answer = link.transceive(apdu)
    link.deactivate()
    return answer


def test_card_that_comes_back_at_once_after_a_torn_tap_is_found(service: Service) -> None:
    link = open_terminal_end(FIRST)
    slot = CardInSlot(EchoCard())
    link.activate(PATIENCE)
    slot.take_out()
    link.close()  # resets what is not there any more, before the service has noticed that it has gone
    with CardInSlot(EchoCard()), open_terminal_end(FIRST) as again:
        assert _tap(again) == bytes(4)


def test_both_ends_find_a_restarted_service_between_taps(service: Service) -> None:
    card = EchoCard()
    with CardInSlot(card) as slot, open_terminal_end(FIRST) as link:
        for _ in range(2):
            assert _tap(link) == bytes(4)
            service.restart()
            wait_for_card()  # the wallet's end has connected again by itself
        assert _tap(link) == bytes(4)
        assert slot.serves
    assert card.apdus == [bytes(4)] * 3


def test_both_ends_find_a_service_restarted_within_a_tap(service: Service) -> None:
    card = EchoCard()
    with CardInSlot(card), open_terminal_end(FIRST) as link:
        link.activate(PATIENCE)
        service.stop()
        with pytest.raises(TransportError):
            link.transceive(bytes(5))
        with pytest.raises(LinkUnavailableError, match="PC/SC service does not run"):
            link.activate(0.1)
        service.start()
        wait_for_card()
        assert _tap(link) == bytes(4)
    assert card.apdus == [bytes(4)]


def test_service_that_ends_while_the_terminal_waits_is_said_to(service: Service) -> None:
    link = open_terminal_end(FIRST)
    said: list[str] = []
    waits = threading.Event()

    def wait() -> None:
        waits.set()
        try:
            link.activate(PATIENCE)
        except LinkUnavailableError as error:
            said.append(str(error))

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert waits.wait(PATIENCE)
    with service.stopped():
        waiting.join(PATIENCE / 2)
        assert not waiting.is_alive()
    link.close()
    assert len(said) == 1
    assert "PC/SC service" in said[0]


def test_terminal_cannot_be_opened_without_the_service(service: Service) -> None:
    with (
        service.stopped(),
        pytest.raises(LinkUnavailableError, match=r"PC/SC service does not run.*apt-get install pcscd"),
    ):
        open_terminal_end("pcsc:")


def test_wallet_cannot_be_opened_without_the_driver(service: Service) -> None:
    with service.stopped(), pytest.raises(LinkUnavailableError, match="apt-get install pcscd vsmartcard-vpcd"):
        open_card_end("vpcd:")


def test_commands_say_in_one_sentence_what_is_missing(service: Service, home: Path) -> None:
    with service.stopped():
        charge = tap("pos", "charge", "1.00", "EUR", "pcsc:", "--json", home=home)
        probe = tap("pos", "probe", "pcsc:", home=home)
        serve = tap("wallet", "serve", "vpcd:", home=home)
    assert [charge.code, probe.code, serve.code] == [69, 69, 69]
    assert "PC/SC service does not run" in charge.sentence
    assert charge.json == {"error": charge.sentence.removeprefix("tap-pos: "), "exit_code": 69}
    assert "PC/SC service does not run" in probe.sentence
    assert "no vpcd driver listens at 127.0.0.1:35963" in serve.sentence
    assert "pcscd vsmartcard-vpcd" in serve.sentence
    assert probe.out == serve.out == ""


def test_card_end_that_was_never_served_leaves_the_slot_empty(service: Service) -> None:
    port = open_card_end("vpcd:")
    port.close()
    port.serve(EchoCard())  # returns at once
    wait_for_no_card()
    with open_terminal_end(FIRST) as link, pytest.raises(CardSilentError):
        link.activate(0.05)


def test_wallet_that_waits_for_an_occupied_slot_can_be_closed(service: Service) -> None:
    with CardInSlot(EchoCard()), open_terminal_end(FIRST) as link:
        waiting = open_card_end("vpcd:")
        thread = threading.Thread(target=waiting.serve, args=(EchoCard(),), daemon=True)
        thread.start()
        assert _tap(link) == bytes(4)
        waiting.close()
        thread.join(2)
        assert not thread.is_alive(), "close() did not end serve()"
        link.close()


@pytest.fixture
def fresh(home: Path) -> Iterator[Laboratory]:
    """A wallet and a terminal of which no tap was torn yet; the terminal does not wait for a card to come back."""
    with Laboratory(home=home, terminal_options=TerminalOptions(timeout=PATIENCE, again=0)) as laboratory:
        yield laboratory


def test_service_that_ends_within_a_charge_is_a_torn_tap(service: Service, fresh: Laboratory) -> None:
    def end(apdu: bytes) -> None:
        if apdu[1] == Ins.GET_VIRTUAL_CARD and not stopped:
            stopped.append(apdu)
            service.stop()

    stopped: list[bytes] = []
    before = fresh.balance
    with CardInSlot(HookedCard(fresh.phone.card, hook=end)) as slot:
        outcome = fresh.terminal.charge(Amount.parse("1.00", "EUR"), FIRST)
        assert (outcome.kind, outcome.charged) == (OutcomeKind.TORN, False)
        assert fresh.balance == before
        service.start()
        wait_for_card()
        assert slot.serves
        assert fresh.terminal.charge(Amount.parse("1.00", "EUR"), FIRST).approved


def test_serving_wallet_process_finds_a_restarted_service(service: Service, home: Path) -> None:
    with Running("wallet", "serve", "vpcd:", "--json", home=home) as wallet, Terminal.open(home) as terminal:
        wallet.wait_for('"ready"')
        assert terminal.charge(Amount.parse("1.00", "EUR"), FIRST).approved
        service.restart()
        assert terminal.charge(Amount.parse("1.00", "EUR"), FIRST).approved
    wait_for_no_card()


def test_charge_says_that_a_reader_is_not_there_and_not_that_a_card_has_left(service: Service, home: Path) -> None:
    charge = tap("pos", "charge", "1.00", "EUR", "pcsc:nobody", "--json", home=home)
    assert charge.code == 69
    assert "no PC/SC reader is named like 'nobody'" in charge.sentence
