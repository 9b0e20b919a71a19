# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The user's own hand in the loop: GnuPG's pinentry on a real terminal, and every process as users start it."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pytest

from lab.demo import free_udp_port
from tests.end_to_end.commands import Running, balance, command_line, tap

_TTY = ("--trusted-ui", "pinentry:pinentry-tty")
_CURSES = ("--trusted-ui", "pinentry:pinentry-curses")
Surface = tuple[str, str]
_PATIENCE = 20.0
_PROMPT = "Pay 60.00 EUR to Corner Bakery?"

pytestmark = pytest.mark.pinentry


class Window:
    """A terminal window with one command in it. What it showed is in `screen`; what is typed is not."""

    def __init__(self, home: Path, *command: str) -> None:
        program, *arguments = command_line("wallet", *command, home=home)
        environment = {**os.environ, "TERM": "xterm"}
        self._child = pexpect.spawn(
            program, arguments, timeout=_PATIENCE, dimensions=(24, 100), encoding="utf-8", env=environment,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
        self._child.logfile_read = self
        self.screen = ""

    def write(self, text: str) -> None:
        self.screen += text

    def flush(self) -> None:
        """Nothing is kept back."""

    def expect(self, text: str) -> None:
        """Wait until `text` is shown."""
        self._child.expect_exact(text)

    def type(self, keys: str) -> None:
        """Press keys once the program waits for them without showing them."""
        assert self._child.waitnoecho(_PATIENCE)
        self._child.send(keys)

    def close_by_ctrl_c(self) -> None:
        self._child.sendintr()
        self.wait(130)

    def wait(self, code: int) -> None:
        """Wait for the end of the command."""
        self._child.expect(pexpect.EOF)
        self._child.close()
        assert self._child.exitstatus == code, self.screen

    def end(self) -> None:
        self._child.close(force=True)


Opener = Callable[..., Window]


@pytest.fixture
def window(home: Path) -> Iterator[Opener]:
    """Return what opens a window with a wallet command in it."""
    opened: list[Window] = []

    def open_window(*command: str) -> Window:
        opened.append(Window(home, *command))
        return opened[-1]

    yield open_window
    for one in opened:
        one.end()


@pytest.fixture
def with_pin(home: Path, window: Opener) -> Path:
    """The home, once its user has set a PIN of 2468."""
    setting = window("pin", *_TTY)
    setting.expect("Your new PIN, 4 to 12 digits:")
    setting.type("2468\n")
    setting.expect("The new PIN once more:")
    setting.type("2468\n")
    setting.expect("The PIN is set.")
    setting.wait(0)
    assert "2468" not in setting.screen
    return home


def _charge(home: Path, *arguments: str) -> str:
    outcome: str = tap("pos", "charge", "60.00", "EUR", *arguments, "--json", home=home).json["outcome"]
    return outcome


@pytest.mark.requirement("A5")
def test_a_wrong_pin_then_the_right_one_then_the_second_tap(with_pin: Path, window: Opener) -> None:
    wallet = window("serve", *_TTY)
    wallet.expect("ready at")
    assert _charge(with_pin) == "see phone"
    wallet.expect("the trusted world asks its user")
    wallet.expect(_PROMPT)
    wallet.type("1111\n")
    wallet.expect("Wrong PIN, 2 tries left")
    wallet.expect(_PROMPT)
    wallet.type("2468\n")
    wallet.expect("user agreed: tap again within a minute")
    assert _charge(with_pin) == "approved"
    wallet.expect("paid: 60.00 EUR to Corner Bakery")
    wallet.close_by_ctrl_c()
    assert balance(with_pin) == "40.00"
    assert "1111" not in wallet.screen
    assert "2468" not in wallet.screen


@pytest.mark.requirement("A5")
def test_a_pin_that_three_wrong_tries_have_blocked_is_unblocked_with_the_issuer(with_pin: Path, window: Opener) -> None:
    wallet = window("serve", *_TTY)
    wallet.expect("ready at")
    assert _charge(with_pin) == "see phone"
    for wrong in ("1111", "2222", "3333"):
        wallet.expect(_PROMPT)
        wallet.type(f"{wrong}\n")
    for _ in range(2):
        wallet.expect("The PIN is blocked. Your issuer can unblock it.")
        wallet.type("\n")
        wallet.expect("user did not agree")
        assert _charge(with_pin) == "see phone"
    wallet.expect("The PIN is blocked.")
    wallet.close_by_ctrl_c()
    shown = tap("wallet", "show", "--json", home=with_pin).json
    assert shown["pin_tries"] == 0
    refused = tap("wallet", "pin", "--unblock", home=with_pin)
    assert (refused.code, "tap-issuer unblock-pin" in refused.sentence) == (1, True)
    assert tap("issuer", "unblock-pin", shown["device"], home=with_pin).code == 0
    assert tap("wallet", "pin", "--unblock", "--json", home=with_pin).code == 0
    assert tap("wallet", "show", "--json", home=with_pin).json["pin_tries"] == 3
    again = window("serve", *_TTY)
    again.expect("ready at")
    assert _charge(with_pin) == "see phone"
    again.expect(_PROMPT)
    again.type("2468\n")
    again.expect("user agreed")
    assert _charge(with_pin) == "approved"
    again.close_by_ctrl_c()
    assert balance(with_pin) == "40.00"


@pytest.mark.requirement("A5")
def test_a_dialog_that_is_closed_is_a_no(with_pin: Path, window: Opener) -> None:
    wallet = window("serve", *_TTY)
    wallet.expect("ready at")
    for _ in range(2):  # the second one is shown by a program of its own: end of input ends the first
        assert _charge(with_pin) == "see phone"
        wallet.expect(_PROMPT)
        wallet.type("\x04")
        wallet.expect("user did not agree")
    wallet.close_by_ctrl_c()
    assert balance(with_pin) == "100.00"
    assert tap("wallet", "show", "--json", home=with_pin).json["pin_tries"] == 3


@pytest.mark.requirement("A5")
def test_without_a_pin_the_question_is_answered_by_a_button(home: Path, window: Opener) -> None:
    wallet = window("serve", *_CURSES)
    wallet.expect("ready at")
    assert _charge(home) == "see phone"
    wallet.expect("Pay 60.00 EUR")
    wallet.expect("<Yes>")
    wallet.type("\r")
    wallet.expect("user agreed")
    assert _charge(home) == "approved"
    wallet.close_by_ctrl_c()
    assert balance(home) == "40.00"


@pytest.mark.requirement("A5")
def test_in_one_tap_the_link_is_kept_alive_while_the_user_types(with_pin: Path, window: Opener) -> None:
    link = f"nfc:udp:127.0.0.1:{free_udp_port()}"
    wallet = window("serve", link, "--one-tap", *_TTY)
    wallet.expect("ready at")
    with Running("pos", "charge", "60.00", "EUR", link, "--json", home=with_pin) as terminal:
        wallet.expect(_PROMPT)
        time.sleep(2)  # far more than a frame waiting time
        wallet.type("2468\n")
        assert terminal.wait().json["outcome"] == "approved"
    wallet.close_by_ctrl_c()
    assert balance(with_pin) == "40.00"


def test_the_phrase_and_the_limits_are_chosen_on_the_trusted_ui(home: Path, window: Opener) -> None:
    choosing = window("phrase", *_TTY)
    choosing.expect("Choose a phrase")
    choosing.type("blue heron\n")
    choosing.expect("The phrase is set.")
    choosing.wait(0)
    limits = window("limits", "20.00", "--sum", "30.00", "--count", "3", *_TTY)
    limits.expect("[blue heron] Let payments through without asking")
    limits.type("y")
    limits.expect("The limit is set.")
    limits.wait(0)
    shown = tap("wallet", "show", "--json", home=home).json
    assert (shown["no_pin_limit"], shown["sum_limit"], shown["count_limit"]) == ("20.00", "30.00", 3)
    fewer = window("limits", "10.00", "--count", "0", *_TTY)
    fewer.expect("10.00 EUR each, 30.00 EUR together?")  # what is not named stays, and is said
    fewer.type("y")
    fewer.wait(0)
    shown = tap("wallet", "show", "--json", home=home).json
    assert (shown["no_pin_limit"], shown["sum_limit"], shown["count_limit"]) == ("10.00", "30.00", None)


def test_a_cancelled_pin_is_not_set_and_the_command_says_so(home: Path, window: Opener) -> None:
    setting = window("pin", *_TTY)
    setting.expect("Your new PIN")
    setting.type("\x04")
    setting.expect("The PIN was not changed.")
    setting.wait(1)
    assert tap("wallet", "show", "--json", home=home).json["pin_tries"] is None


@pytest.mark.attack("I1")
def test_the_programs_of_the_dialogs_are_started_before_the_lock_down_and_end_with_the_wallet(
    home: Path, window: Opener
) -> None:
    wallet = window("serve", *_TTY)
    wallet.expect("ready at")
    tee = _children(wallet._child.pid)
    dialogs = [pid for one in tee for pid in _children(one)]
    assert [_name(one) for one in dialogs] == ["pinentry-tty"] * 2
    status = [Path(f"/proc/{one}/status").read_text() for one in tee]
    assert len(status) == 1
    assert all(held in status[0] for held in ("Seccomp:\t2", "NoNewPrivs:\t1"))
    wallet.close_by_ctrl_c()
    _wait_until_gone(dialogs)


def _wait_until_gone(pids: list[int]) -> None:
    until = time.monotonic() + _PATIENCE
    while any(map(_runs, pids)) and time.monotonic() < until:
        time.sleep(0.01)
    assert not [one for one in pids if _runs(one)]


def _runs(pid: int) -> bool:
    """Tell whether a process is there and not a zombie, which waits for whoever adopted it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def _name(pid: int) -> str:
    return Path(f"/proc/{pid}/exe").readlink().name


@pytest.mark.parametrize("surface", [_TTY, _CURSES], ids=["tty", "curses"])
def test_ctrl_c_in_a_dialog_ends_it_and_everything_it_started(with_pin: Path, window: Opener, surface: Surface) -> None:
    choosing = window("phrase", *surface)
    choosing.expect("Your PIN, to choose")
    dialogs = [pid for tee in _children(choosing._child.pid) for pid in _children(tee)]
    assert len(dialogs) == 2
    choosing.close_by_ctrl_c()
    _wait_until_gone(dialogs)
    shown = tap("wallet", "show", "--json", home=with_pin)
    assert (shown.code, shown.json["pin_tries"]) == (0, 3)


@pytest.mark.parametrize("surface", [_TTY, _CURSES], ids=["tty", "curses"])
@pytest.mark.parametrize("options", [(), ("--one-tap",)], ids=["two taps", "one tap"])
def test_ctrl_c_ends_a_wallet_whose_user_is_being_asked(
    with_pin: Path, window: Opener, surface: Surface, options: tuple[str, ...]
) -> None:
    wallet = window("serve", *surface, *options)
    wallet.expect("ready at")
    with Running("pos", "charge", "60.00", "EUR", "--again", "0", "--json", home=with_pin) as terminal:
        wallet.expect("60.00 EUR")
        wallet.close_by_ctrl_c()
        assert terminal.wait().json["outcome"] in ("see phone", "torn")
    shown = tap("wallet", "show", "--json", home=with_pin).json
    assert (shown["balance"], shown["pin_tries"]) == ("100.00", 3)


@pytest.mark.parametrize(
    ("surface", "ends"),
    [
        (_TTY, (signal.SIGTERM,)),
        (_TTY, (signal.SIGINT, signal.SIGINT)),
        (_CURSES, (signal.SIGHUP,)),
        (_CURSES, (signal.SIGKILL,)),
    ],
    ids=["ended", "interrupted twice", "its window is closed", "killed"],
)
def test_however_a_command_ends_its_dialog_reads_the_keyboard_no_longer(
    with_pin: Path, window: Opener, surface: Surface, ends: tuple[signal.Signals, ...]
) -> None:
    choosing = window("phrase", *surface)
    choosing.expect("Your PIN, to choose")
    tee = _children(choosing._child.pid)
    started = [*tee, *(pid for one in tee for pid in _children(one))]
    assert len(started) == 3
    for one in ends:
        os.kill(choosing._child.pid, one)
        time.sleep(0.01)  # the second one comes while the first one is seen to
    _wait_until_gone(started)
    shown = tap("wallet", "show", "--json", home=with_pin)
    assert (shown.code, shown.json["pin_tries"]) == (0, 3)
    assert tap("wallet", "sync", home=with_pin).code == 0


def test_dialogs_that_were_killed_are_told_of(home: Path, window: Opener) -> None:
    wallet = window("serve", *_TTY)
    wallet.expect("ready at")
    for one in [pid for tee in _children(wallet._child.pid) for pid in _children(tee)]:
        os.kill(one, signal.SIGKILL)
    for _ in range(2):
        assert _charge(home) == "see phone"
        wallet.expect("user did not agree")
    assert _charge(home) == "see phone"
    wallet.expect("nobody can be asked any more")
    wallet.close_by_ctrl_c()


# --- without a terminal, or without the program


def test_without_a_terminal_the_sentence_says_so(home: Path) -> None:
    refused = tap("wallet", "serve", "--trusted-ui", "pinentry", home=home)
    assert refused.code == 2
    assert "needs a terminal" in refused.sentence


def test_a_program_that_is_not_installed_is_named(home: Path, window: Opener) -> None:
    wallet = window("serve", "--trusted-ui", "pinentry:no-such-pinentry")
    wallet.expect("no-such-pinentry is not installed; on Debian: apt-get install pinentry-curses")
    wallet.wait(69)


@pytest.mark.parametrize("program", ["/bin/cat", "/bin/true", sys.executable])
def test_a_program_that_is_no_pinentry_is_found_out(home: Path, window: Opener, program: str) -> None:
    wallet = window("serve", "--trusted-ui", f"pinentry:{program}")
    wallet.expect("is no pinentry")
    wallet.wait(2)
