# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""A payment with a Trusted Key as users do it: every party a process, the Key on any link, its disk full."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lab.demo import free_udp_port
from lab.key_process import press
from tests.end_to_end.commands import Running, balance, free_port, serving, tap
from wallet.trusted_key.screen import Button

_ASKED = "Pay 60.00 EUR to Corner Bakery?"


def _socket(home: Path) -> str:
    return f"socket:{home}/key/card.sock"


def _tcp(_: Path) -> str:
    return f"socket:127.0.0.1:{free_port()}"


def _short_tcp(_: Path) -> str:
    return f"socket:127.0.0.1:{free_port()}?short"


def _radio(_: Path) -> str:
    return f"nfc:udp:127.0.0.1:{free_udp_port()}"


@contextmanager
def _paired(home: Path, link: str) -> Iterator[Running]:
    """A Key that serves at `link`, paired by the users' commands; it is needed above 50.00 EUR."""
    answers = home / "answers"
    answers.write_text("confirm\nconfirm\n")
    surface = ("--trusted-ui", f"scripted:{answers}", "--json")
    assert tap("wallet.trusted_key", "init", home=home).code == 0
    with Running("wallet.trusted_key", "serve", link, "--json", home=home) as key:
        key.wait_for('"ready"')
        with Running("wallet", "pair", "--key", link, *surface, home=home) as pairing:
            assert "Pair with a phone that shows" in press(home / "key", Button.OK)
            assert pairing.wait().json["done"] is True
        assert tap("wallet", "limits", "20.00", "--key", "50.00", *surface, home=home).json["done"] is True
        yield key


def _charge(home: Path, amount: str = "60.00") -> dict[str, Any]:
    report: dict[str, Any] = tap("pos", "charge", amount, "EUR", "--json", home=home).json
    return report


@pytest.mark.requirement("K1")
@pytest.mark.requirement("K4")
@pytest.mark.parametrize("where", [_socket, _tcp, _short_tcp, _radio], ids=["unix", "tcp", "short lengths", "radio"])
def test_a_key_on_any_link_agrees_and_signs(home: Path, where: Callable[[Path], str]) -> None:
    link = where(home)
    with _paired(home, link), serving(home, "--key", link) as wallet:
        _agree(home, wallet)
        report = _charge(home)
    assert (report["outcome"], report["key_bytes"] > 0) == ("approved", True)
    assert balance(home) == "40.00"


@pytest.mark.attack("V2")
@pytest.mark.attack("V4")
def test_nothing_is_paid_but_what_was_agreed_to_and_where_and_with_the_same_key(home: Path, tmp_path: Path) -> None:
    link = _socket(home)
    with _paired(home, link) as key, serving(home, "--key", link) as wallet:
        assert _charge(home)["outcome"] == "see phone"
        assert press(home / "key", Button.CANCEL) == _ASKED
        wallet.wait_for("user did not agree")
        _agree(home, wallet)
        assert _charge(home, "60.01")["outcome"] == "see phone"
        press(home / "key", Button.CANCEL)
        wallet.wait_for("user did not agree", 2)
        _agree(home, wallet, 2)
        assert _charge_elsewhere(home, tmp_path / "elsewhere")["outcome"] == "see phone"
        press(home / "key", Button.CANCEL)
        wallet.wait_for("user did not agree", 3)
        _agree(home, wallet, 3)
        key.interrupt()
        assert _charge(home)["outcome"] == "see phone"
        wallet.wait_for("user did not agree", 4)
        with _another_key(tmp_path / "another", link):
            assert _charge(home)["outcome"] == "see phone"
            wallet.wait_for("user did not agree", 5)
    assert balance(home) == "100.00"


@pytest.mark.attack("V4")
def test_what_was_agreed_to_is_paid_within_a_minute_or_not_at_all(home: Path) -> None:
    link = _socket(home)
    with _paired(home, link), serving(home, "--key", link) as wallet:
        _agree(home, wallet)
        time.sleep(61)
        assert _charge(home)["outcome"] == "see phone"
        assert press(home / "key", Button.OK) == _ASKED
        wallet.wait_for("user agreed", 2)
        assert _charge(home)["outcome"] == "approved"
    assert balance(home) == "40.00"


def _agree(home: Path, wallet: Running, times: int = 1) -> None:
    """Tap, press OK on the Key, and wait until the wallet has said so that many times."""
    assert _charge(home)["outcome"] == "see phone"
    assert press(home / "key", Button.OK) == _ASKED
    wallet.wait_for("user agreed", times)


def _charge_elsewhere(home: Path, other: Path) -> dict[str, Any]:
    """Charge the wallet of `home` at another terminal of the same acquirer and merchant."""
    issuer = ("--issuer", f"embedded:{home / 'issuer'}")
    assert tap("pos", "init", "--terminal-id", "TERM0002", *issuer, home=other).code == 0
    report: dict[str, Any] = tap("pos", "charge", "60.00", "EUR", f"socket:{home}/tap.sock", "--json", home=other).json
    return report


@contextmanager
def _another_key(home: Path, link: str) -> Iterator[None]:
    """A Key that nobody has paired, where the paired one was."""
    assert tap("wallet.trusted_key", "init", home=home).code == 0
    with Running("wallet.trusted_key", "serve", link, "--json", home=home) as key:
        key.wait_for('"ready"')
        yield


@pytest.mark.attack("V2")
@pytest.mark.attack("T5")
@pytest.mark.requirement("K2")
def test_a_key_whose_disk_is_full_agrees_to_nothing_and_goes_on_once_there_is_room(home: Path) -> None:
    with _paired(home, _socket(home)) as key, serving(home, "--key", _socket(home)) as wallet:
        with _no_room(key.process.pid):
            assert _charge(home)["outcome"] == "see phone"
            wallet.wait_for("user did not agree")
            assert _charge(home)["outcome"] == "see phone"
            wallet.wait_for("user did not agree", 2)
            assert _charge(home, "10.00")["outcome"] == "approved"
        _agree(home, wallet)
        assert _charge(home)["outcome"] == "approved"
    assert balance(home) == "30.00"


@pytest.mark.attack("V4")
def test_a_key_whose_disk_fills_up_after_the_press_signs_nothing(home: Path) -> None:
    with _paired(home, _socket(home)) as key, serving(home, "--key", _socket(home)) as wallet:
        _agree(home, wallet)
        with _no_room(key.process.pid):
            assert _charge(home)["outcome"] == "see phone"
            assert balance_of(wallet) == "100.00"
            wallet.wait_for("user did not agree")
        _agree(home, wallet, 2)
        assert _charge(home)["outcome"] == "approved"
    assert balance(home) == "40.00"


def balance_of(wallet: Running) -> str:
    """Return what a serving wallet said last that it holds."""
    said: str = [one["balance"] for one in wallet.events if one.get("balance")][-1]
    return said


@contextmanager
def _no_room(pid: int) -> Iterator[None]:
    """Let no file of a process grow or be written beyond its first bytes; the kernel refuses it."""
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)
