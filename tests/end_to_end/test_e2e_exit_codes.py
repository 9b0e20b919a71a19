# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Every documented exit code, each from a real `tap-pos charge` or its sisters."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from console.home import Home
from lab.fixtures import Laboratory, Setup, set_up
from protocol.commands import Ins
from tests.end_to_end.commands import Finished, Running, balance, free_port, serving, tap
from tests.end_to_end.parties import EditingCard, HookedCard, PlainCard, flip, served
from tests.end_to_end.soft_wallet import SoftWallet

DEBIT = bytes.fromhex("8052")


@pytest.fixture(scope="module")
def wallet(module_home: Path) -> Iterator[Running]:
    with serving(module_home) as running:
        yield running


@pytest.fixture
def link(tmp_path: Path) -> str:
    return f"socket:{tmp_path / 'link'}"


def charge(home: Path, link: str, amount: str = "1.00", *options: str) -> Finished:
    return tap("pos", "charge", amount, "EUR", link, "--again", "0", *options, "--json", home=home)


def journal(home: Path) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = tap("pos", "history", "--json", home=home).json
    return lines


def test_0_is_approved(module_home: Path, wallet: Running) -> None:
    done = tap("pos", "charge", "1.00", home=module_home)
    assert (done.code, done.err) == (0, "")
    assert "APPROVED" in done.out


def test_10_is_declined_with_the_reason(module_home: Path, wallet: Running) -> None:
    done = tap("pos", "charge", "500.00", home=module_home)
    assert done.code == 10
    assert "DECLINED: insufficient funds" in done.out
    assert "paid to" not in done.out
    last = journal(module_home)[-1]
    assert (last["state"], last["reason"]) == ("refused", "insufficient funds")


def test_11_is_see_phone_and_the_second_tap_pays_once_the_user_agreed(home: Path, tmp_path: Path) -> None:
    answers = tmp_path / "answers"
    answers.write_text("confirm\n")
    with serving(home, "--trusted-ui", f"scripted:{answers}") as phone:
        assert tap("pos", "charge", "60.00", home=home).code == 11
        phone.wait_for("user agreed")
        assert tap("pos", "charge", "60.00", home=home).code == 0
        phone.wait_for("tap ended", times=2)
    assert balance(home) == "40.00"
    assert (tmp_path / "answers.shown").read_text() == "Pay 60.00 EUR to Corner Bakery?\n"


def test_11_is_see_phone_again_when_nobody_agrees(module_home: Path, wallet: Running) -> None:
    for _ in range(2):
        done = tap("pos", "charge", "60.00", home=module_home)
        assert done.code == 11
        assert "SEE PHONE" in done.out


def test_12_is_torn_and_nothing_was_charged_before_debit(module_home: Path, link: str) -> None:
    def leave(apdu: bytes) -> None:
        if apdu[1] == Ins.GET_VIRTUAL_CARD:
            port.close()

    with served(HookedCard(SoftWallet(module_home), leave), link) as port:
        done = charge(module_home, link)
    assert (done.code, done.json["outcome"], done.json["charged"]) == (12, "torn", False)
    assert "nothing was charged" in done.json["reason"]


def test_12_is_torn_and_not_known_after_debit(module_home: Path, link: str) -> None:
    def leave(apdu: bytes) -> None:
        if apdu.startswith(DEBIT):
            port.close()

    with served(HookedCard(SoftWallet(module_home), after=leave), link) as port:
        done = charge(module_home, link)
    assert (done.code, done.json["outcome"], done.json["charged"]) == (12, "torn", None)
    last = journal(module_home)[-1]
    assert (last["state"], last["confirmed"], last["reference"]) == ("open", False, done.json["reference"])


def test_13_is_a_card_of_another_application(module_home: Path, link: str) -> None:
    with served(PlainCard(), link):
        done = charge(module_home, link)
    assert (done.code, done.json["outcome"], done.json["charged"]) == (13, "no application", False)


def test_14_is_a_card_that_fails_a_check(module_home: Path, link: str) -> None:
    with served(EditingCard(SoftWallet(module_home), Ins.GET_VIRTUAL_CARD, lambda data: flip(data, 40)), link):
        done = charge(module_home, link)
    assert (done.code, done.json["outcome"], done.json["reason"]) == (14, "not verified", "signature wrong")


def test_15_is_a_terminal_that_the_wallet_does_not_accept(made_home: Path, tmp_path: Path) -> None:
    mine, foreign = shutil.copytree(made_home, tmp_path / "mine"), tmp_path / "foreign"
    set_up(Home(foreign), Setup(merchant="Stranger"))
    link = f"socket:{tmp_path / 'link'}"
    with serving(mine, link) as wallet:
        done = tap("pos", "charge", "1.00", "EUR", link, home=foreign)
        wallet.wait_for("terminal refused")
    assert done.code == 15
    assert done.out.splitlines()[-1].strip() == "TERMINAL NOT ACCEPTED"
    assert balance(mine) == "100.00"
    [line] = tap("wallet", "history", "--json", home=mine).json
    assert (line["what"], line["reason"]) == ("terminal not accepted", "certificate signature wrong")
    assert journal(foreign) == []


def test_16_is_no_card_in_time(module_home: Path, link: str) -> None:
    done = charge(module_home, link, "1.00", "--timeout", "0.1")
    assert (done.code, done.json["outcome"], done.json["apdus"]) == (16, "no card", 0)


def test_16_is_a_card_that_does_not_answer_a_reset(module_home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        done = charge(module_home, f"socket:127.0.0.1:{silent.getsockname()[1]}", "1.00", "--timeout", "0.2")
    assert done.code == 16


def test_16_is_a_link_whose_other_end_hangs_up_at_once(module_home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=hang_up, args=(server,))
        thread.start()
        command = ["charge", "1.00", "EUR", f"socket:127.0.0.1:{server.getsockname()[1]}", "--timeout", "0.3"]
        with Running("pos", *command, home=module_home) as terminal:
            try:
                code: int | None = terminal.process.wait(10)
            finally:
                terminal.process.kill()
                server.shutdown(socket.SHUT_RDWR)
                thread.join()
    assert code == 16


def hang_up(server: socket.socket) -> None:
    """Accept and close every connection, until the server is shut down."""
    try:
        while True:
            server.accept()[0].close()
    except OSError:
        return


def test_2_is_usage_and_nothing_is_changed(module_home: Path) -> None:
    before = journal(module_home)
    assert tap("pos", "charge", "12.5.0", home=module_home).code == 2
    assert journal(module_home) == before


def test_69_is_a_link_that_cannot_be_opened(module_home: Path, tmp_path: Path) -> None:
    done = tap("pos", "charge", "1.00", "EUR", f"socket:{tmp_path}/no/such/folder/link?listen", home=module_home)
    assert done.code == 69
    assert "cannot listen at" in done.sentence


def test_69_is_an_address_that_somebody_listens_at(module_home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        link = f"socket:127.0.0.1:{taken.getsockname()[1]}"
        for program, arguments in (("pos", ["charge", "1.00", "EUR", f"{link}?listen"]), ("wallet", ["serve", link])):
            done = tap(program, *arguments, home=module_home)
            assert done.code == 69
            assert "cannot listen at" in done.sentence


def test_69_is_an_issuer_that_cannot_be_reached(home: Path, tmp_path: Path) -> None:
    done = tap("wallet", "load", "1.00", "--issuer", f"embedded:{tmp_path / 'nowhere'}", home=home)
    assert done.code == 69
    assert "there is no issuer" in done.sentence
    assert balance(home) == "100.00"


def test_a_card_may_come_late(module_home: Path, laboratory_home: Path) -> None:
    link = f"socket:127.0.0.1:{free_port()}"
    with Running("pos", "charge", "1.00", "EUR", link, home=module_home) as terminal:
        terminal.wait_for("Present card")
        with Laboratory(home=laboratory_home) as laboratory, served(laboratory.phone.card, link):
            assert terminal.wait().code == 0


@pytest.fixture
def laboratory_home(home: Path) -> Path:
    return home
