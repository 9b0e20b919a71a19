# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""`tap-wallet`: the phone."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from console.cli import EVERYWHERE, common_options, require_shared, run, trace_option
from console.exit_codes import ExitCode
from console.home import Home, make_private
from console.ui import money, print_json
from protocol.commands import DEFAULT_NAME
from protocol.errors import UsageError
from protocol.money import Amount, Currency

if TYPE_CHECKING:
    from protocol.wire import Wire
    from wallet.account import Account
    from wallet.tee.client import TeeSession
    from wallet.tee.contract import CommandId, WalletView


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, epilog=EVERYWHERE)
@click.version_option(package_name="taplab")
def cli() -> None:
    """A phone that pays: a contactless card in front of a trusted world that keeps keys and money.

    \b
      tap-wallet init                 make the wallet
      tap-wallet apply                get virtual cards from the issuer
      tap-wallet load 100.00 EUR      put money on it
      tap-wallet serve                be a card until Ctrl-C
    """


def _issuer_option(home: Home, issuer: str | None) -> str:
    return issuer or home.issuer_url


trusted_ui_option = click.option(
    "--trusted-ui",
    default="",
    metavar="UI",
    help="What only the trusted world draws on: pinentry or pinentry:PROGRAM on this terminal; scripted:FILE for tests."
    " Default: none, so nobody can agree.",
)
dialog_option = click.option(
    "--trusted-ui",
    default="pinentry",
    show_default=True,
    metavar="UI",
    help="What only the trusted world draws on: pinentry or pinentry:PROGRAM on this terminal; scripted:FILE for tests.",
)
key_option = click.option(
    "--key",
    "key_link",
    metavar="LINK",
    help="Where the Trusted Key is (tap-key serve). Default: the Key of this --home, if there is one.",
)
issuer_option = click.option("--issuer", metavar="URL", help="embedded:DIR. Default: the issuer of this --home.")


@contextmanager
def _account(home: Home, issuer: str | None) -> Iterator[Account]:
    """Yield the wallet of `home` joined to its issuer; both are let go afterwards."""
    from protocol.transport.issuer import IssuerLink
    from wallet.account import Account
    from wallet.phone import PhoneOptions, start_of
    from wallet.tee.client import TeeSession

    _require_wallet(home)
    session = TeeSession(start_of(home.wallet, PhoneOptions()))
    try:
        with IssuerLink(_issuer_option(home, issuer)) as link:
            yield Account(session, link)
    finally:
        session.close()


def _require_wallet(home: Home) -> None:
    if not home.wallet.exists():
        raise UsageError(f"there is no wallet in {home.path}; make one with `tap-wallet init`")


@cli.command()
@click.option(
    "--reads",
    default=3,
    show_default=True,
    type=click.IntRange(1, 65_535),
    help="How many cards a terminal may see in ten minutes without asking for a payment. It stays.",
)
@common_options
def init(home: Home, as_json: bool, reads: int) -> None:
    """Make an empty wallet: its folders, its device key, its trusted world's storage."""
    from wallet.phone import DEVICE_FOLDER, STORAGE_FOLDER, PhoneOptions, start_of
    from wallet.tee.client import TeeSession

    existed = home.wallet.exists()
    for folder in (home.wallet, home.wallet / DEVICE_FOLDER, home.wallet / STORAGE_FOLDER):
        make_private(folder)
    TeeSession(replace(start_of(home.wallet, PhoneOptions()), reads=reads)).close()
    if as_json:
        print_json({"wallet": str(home.wallet), "created": not existed})
    else:
        state = "was there already and is kept" if existed else "is ready"
        click.echo(f"The wallet in {home.wallet} {state}. Next: tap-wallet apply.")


@cli.command()
@click.option("--currency", default="EUR", show_default=True, help="Currency of the purse; it stays.")
@click.option("--cards", default=20, show_default=True, type=click.IntRange(1, 64), help="How many to apply for.")
@issuer_option
@common_options
def apply(home: Home, as_json: bool, currency: str, cards: int, issuer: str | None) -> None:
    """Apply for virtual cards. One is used up by each tap; the wallet refills the pool itself."""
    from wallet.ui import view_as_json, view_as_text

    try:
        number = Currency.of(currency).number
    except ValueError as error:
        raise UsageError(f"{error}; write it as EUR, USD, JPY, …") from None
    with _account(home, issuer) as account:
        view = account.apply(number, cards)
    if as_json:
        print_json(view_as_json(view))
    else:
        click.echo(f"{view_as_text(view)}\nNext: tap-wallet load 100.00 {currency.upper()}.")


@cli.command()
@click.argument("amount")
@click.argument("currency", default="EUR")
@issuer_option
@common_options
def load(home: Home, as_json: bool, amount: str, currency: str, issuer: str | None) -> None:
    """Load AMOUNT of CURRENCY (default EUR) onto the wallet, by a voucher that the issuer signs."""
    from wallet.ui import view_as_json, view_as_text

    wanted = Amount.parse(amount, currency)
    if wanted.minor == 0:
        raise UsageError("a load is more than 0")
    with _account(home, issuer) as account:
        loaded = account.load(wanted)
    if as_json:
        print_json({"loaded": str(loaded.amount.decimal), **view_as_json(loaded.view)})
        return
    click.echo(f"{money(loaded.amount)} loaded.\n{view_as_text(loaded.view)}")
    if loaded.amount != wanted:
        click.echo(f"This was an earlier load that had not arrived. Load {money(wanted)} again if you still want it.")


@cli.command()
@issuer_option
@common_options
def sync(home: Home, as_json: bool, issuer: str | None) -> None:
    """Settle with the issuer: list debits, take over refunds and the newest list of what is blocked, refill the pool.

    What no terminal claimed within seven days of the first sync that lists it comes back. A wallet whose storage was put
    back to an older copy gets its money here, once the seven days in which terminals may still claim are over.
    """
    from wallet.history import History
    from wallet.ui import synced_as_json, synced_as_text

    with _account(home, issuer) as account:
        synced = account.sync()
        view = account.refill().view
    with History(home.wallet) as kept:
        for debit in synced.decided:
            kept.decide(debit.reference, debit.outcome)
        kept.keep_view(view)
    if as_json:
        print_json(synced_as_json(synced, view))
    else:
        click.echo(synced_as_text(synced, view))


@cli.command()
@click.argument("link", required=False)
@click.option("--name", "names", multiple=True, metavar="HEX", help="Application name to answer to; may be repeated.")
@click.option("--allow-scheme-names", is_flag=True, help="Answer even to a registered payment scheme's name.")
@trusted_ui_option
@click.option(
    "--one-tap",
    is_flag=True,
    help="Ask the user while the terminal waits, so that an answer in time needs no second tap.",
)
@key_option
@click.option("--require-sandbox", is_flag=True, help="Refuse to start if the TEE cannot be locked down fully.")
@issuer_option
@trace_option
@common_options
def serve(
    home: Home,
    as_json: bool,
    link: str | None,
    names: tuple[str, ...],
    allow_scheme_names: bool,
    trusted_ui: str,
    one_tap: bool,
    key_link: str | None,
    require_sandbox: bool,
    issuer: str | None,
    trace: bool,
) -> None:
    """Be a card at LINK until Ctrl-C (default: the socket of this --home).

    \b
    LINK is one of
      socket:/path/of/socket     another process on this machine
      socket:127.0.0.1:35963     the same over TCP, vpcd's protocol
      vpcd: or vpcd:HOST:PORT    a card in the PC/SC service of this machine
      nfc:usb, nfc:tty:USB0:pn532, nfc:udp:127.0.0.1:54321   a device of nfcpy's
    with ?connect if the terminal is the one that listens, ?short for short APDU lengths only.
    """
    from console.trace import print_exchange
    from protocol.transport.opening import open_card_end
    from protocol.transport.trace import TracingCard
    from wallet.account import require_card
    from wallet.phone import Phone, PhoneOptions
    from wallet.ui import CardScreen

    _require_wallet(home)
    url = link or home.link
    require_shared(url)
    tty, term = _terminal(trusted_ui)
    key = _key_link(home, key_link)
    options = PhoneOptions(_names(names), trusted_ui, require_sandbox, allow_scheme_names, tty, term, one_tap, key)
    screen = CardScreen(url, as_json=as_json, shares_terminal=bool(tty))
    port = open_card_end(url)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with _kept(tty), Phone(home.wallet, _issuer_option(home, issuer), options, screen.show) as phone:
            view = phone.view()
            require_card(view)
            screen.ready(view, {"wallet": _own_pid(), "tee": phone.tee.pid})
            port.serve(TracingCard(phone.card, print_exchange) if trace else phone.card)
    finally:
        port.close()
        screen.close()


def _key_link(home: Home, given: str | None) -> str:
    """Return where the Key is: at the link that was given, else where that of this home serves; empty for none."""
    from protocol.transport.opening import LinkUrl

    if given is None:
        return home.key_link if home.key.exists() else ""
    LinkUrl.parse(given)
    require_shared(given)
    return given


def _terminal(trusted_ui: str) -> tuple[str, str]:
    """Return the terminal that the trusted UI appears on, and its type; empty for one that needs none."""
    import os
    import sys

    if not trusted_ui.startswith("pinentry"):
        return "", "dumb"
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        try:
            return os.ttyname(stream.fileno()), os.environ.get("TERM", "dumb")
        except (OSError, ValueError):
            continue
    raise UsageError("the trusted UI needs a terminal to appear on; run this in one, or choose scripted:FILE")


def _interrupt(_: int, __: FrameType | None) -> None:
    raise KeyboardInterrupt


def _own_pid() -> int:
    import os

    return os.getpid()


def _names(given: tuple[str, ...]) -> tuple[bytes, ...]:
    try:
        names = tuple(bytes.fromhex(name) for name in given)
    except ValueError:
        raise UsageError("an application name is written in hexadecimal, as F054415000") from None
    if any(not 5 <= len(name) <= 16 for name in names):
        raise UsageError("an application name has 5 to 16 bytes (ISO 7816-4 §12.2.3)")
    return names or (DEFAULT_NAME,)


@contextmanager
def _trusted(home: Home, trusted_ui: str) -> Iterator[TeeSession]:
    """Yield the trusted world of `home` with a surface to ask its user on."""
    from wallet.phone import PhoneOptions, start_of
    from wallet.tee.client import TeeSession

    _require_wallet(home)
    tty, term = _terminal(trusted_ui)
    with _kept(tty):
        session = TeeSession(start_of(home.wallet, PhoneOptions(trusted_ui=trusted_ui, tty=tty, term=term)))
        try:
            yield session
        finally:
            session.close()


@contextmanager
def _kept(tty: str) -> Iterator[None]:
    """Leave the terminal as it was found, also when a dialog was cut off; its window closed is Ctrl-C."""
    import termios

    signal.signal(signal.SIGHUP, _interrupt)
    if not tty:
        yield
        return
    with Path(tty).open("rb", buffering=0) as terminal:
        before = termios.tcgetattr(terminal)
        try:
            yield
        finally:
            with suppress(termios.error):
                termios.tcsetattr(terminal, termios.TCSAFLUSH, before)


def _agreed(session: TeeSession, command: CommandId, parameters: Wire | None = None) -> bool:
    from wallet.phone import DIALOGS_SECONDS
    from wallet.tee.contract import Agreed

    return Agreed.decode(session.invoke_command(command, parameters, DIALOGS_SECONDS)).done


def _report_done(done: bool, what: str, *, as_json: bool, yes: str = "set", no: str = "not changed") -> int:
    if as_json:
        print_json({"done": done})
    else:
        click.echo(f"{what} is {yes}." if done else f"{what} was {no}.")
    return ExitCode.OK if done else ExitCode.FAILED


@cli.command()
@click.option("--unblock", is_flag=True, help="Have its tries back, once the issuer has allowed it.")
@dialog_option
@issuer_option
@common_options
def pin(home: Home, as_json: bool, unblock: bool, trusted_ui: str, issuer: str | None) -> int:
    """Set or change the PIN that large payments ask for. It is typed on the trusted UI and never leaves the trusted world.

    Three wrong tries block it; `tap-issuer unblock-pin` and then --unblock give them back.
    """
    from wallet.tee.contract import CommandId
    from wallet.ui import view_as_json

    if unblock:
        with _account(home, issuer) as account:
            view = account.unblock_pin()
        print_json(view_as_json(view)) if as_json else click.echo("The PIN has its three tries back.")
        return ExitCode.OK
    with _trusted(home, trusted_ui) as session:
        return _report_done(_agreed(session, CommandId.CHANGE_PIN), "The PIN", as_json=as_json)


@cli.command()
@dialog_option
@common_options
def phrase(home: Home, as_json: bool, trusted_ui: str) -> int:
    """Choose the phrase that every question of the trusted world begins with, so that a fake is noticed."""
    from wallet.tee.contract import CommandId

    with _trusted(home, trusted_ui) as session:
        return _report_done(_agreed(session, CommandId.CHOOSE_PHRASE), "The phrase", as_json=as_json)


@cli.command()
@click.option("--forget", is_flag=True, help="Forget the Key that is paired.")
@key_option
@dialog_option
@issuer_option
@common_options
def pair(home: Home, as_json: bool, forget: bool, key_link: str | None, trusted_ui: str, issuer: str | None) -> int:
    """Pair the wallet with a Trusted Key: both show the same code, and both want a yes.

    Then payments above `tap-wallet limits --key` are agreed to on the Key, and signed by it too.
    """
    from protocol.transport.issuer import IssuerLink
    from wallet.account import KEY_POOL_SIZE, Account
    from wallet.key_line import KeyLine
    from wallet.phone import DIALOGS_SECONDS
    from wallet.tee.contract import Agreed, CommandId, WalletView

    link = _key_link(home, key_link)
    if not link and not forget:
        raise UsageError("there is no Key in this --home; say where it is with --key LINK (tap-key serve shows it)")
    with _trusted(home, trusted_ui) as session, KeyLine(link) as key:
        if forget:
            gone = _agreed(session, CommandId.FORGET_KEY)
            return _report_done(gone, "The Key", as_json=as_json, yes="forgotten", no="not forgotten")
        done = Agreed.decode(key.converse(session, CommandId.PAIR_KEY, timeout=DIALOGS_SECONDS)).done
        view = session.invoke(CommandId.SHOW, WalletView)
        if done and view.currency and not view.key_cards_left:
            with IssuerLink(_issuer_option(home, issuer)) as link_to_issuer:
                Account(session, link_to_issuer, key).apply(view.currency, KEY_POOL_SIZE, with_key=True)
        return _report_done(done, "The Key", as_json=as_json, yes="paired", no="not paired")


@cli.command()
@click.argument("direction", type=click.Choice(["out", "in"]))
@key_option
@dialog_option
@common_options
def move(home: Home, as_json: bool, direction: str, key_link: str | None, trusted_ui: str) -> int:
    """Move the whole purse out to the paired Trusted Key, or in from it: money, cards and all that was paid.

    Another wallet that is paired with that Key takes it in. A move that was torn is gone on with by the same command;
    `in` also ends a move out that never reached the Key.
    """
    from wallet.key_line import KeyLine
    from wallet.phone import DIALOGS_SECONDS
    from wallet.tee.contract import Agreed, CommandId

    command = CommandId.MOVE_OUT if direction == "out" else CommandId.MOVE_IN
    with _trusted(home, trusted_ui) as session, KeyLine(_key_link(home, key_link)) as key:
        done = Agreed.decode(key.converse(session, command, timeout=DIALOGS_SECONDS)).done
        where = "at the Key" if direction == "out" else "here"
        return _report_done(done, "The purse", as_json=as_json, yes=where, no="not moved")


@cli.command()
@click.argument("payment")
@click.option("--key", "key", metavar="AMOUNT", help="Above this the Trusted Key is needed; 0 for never.")
@click.option("--sum", "total", metavar="AMOUNT", help="Together since the last consent; 0 for no limit.")
@click.option("--count", type=click.IntRange(0, 2**31), help="Payments since the last consent; 0 for no limit.")
@dialog_option
@common_options
def limits(
    home: Home, as_json: bool, payment: str, key: str | None, total: str | None, count: int | None, trusted_ui: str
) -> int:
    """Let payments up to PAYMENT through without asking. The trusted UI asks whether that is your wish.

    A limit that is not named stays as it is.
    """
    from wallet.account import require_card
    from wallet.tee.contract import CommandId, NewLimits, WalletView

    with _trusted(home, trusted_ui) as session:
        view = session.invoke(CommandId.SHOW, WalletView)
        require_card(view)
        code = Currency.of(view.currency).code
        wanted = NewLimits(
            Amount.parse(payment, code).minor,
            view.sum_limit if total is None else Amount.parse(total, code).minor,
            view.count_limit if count is None else count,
            view.key_limit if key is None else Amount.parse(key, code).minor,
        )
        return _report_done(_agreed(session, CommandId.CHANGE_LIMITS, wanted), "The limit", as_json=as_json)


@cli.command()
@click.option("--tee", is_flag=True, help="Show what locks the trusted world down on this machine.")
@click.option("--require-sandbox", is_flag=True, help="Fail if the TEE cannot be locked down fully.")
@common_options
def show(home: Home, as_json: bool, tee: bool, require_sandbox: bool) -> None:
    """Show the card, the balance and the pool of virtual cards."""
    from wallet.environment.launcher import TrustedWorldBusyError
    from wallet.phone import PhoneOptions, start_of
    from wallet.tee.client import TeeSession
    from wallet.tee.contract import CommandId, Report, WalletView
    from wallet.ui import report_as_json, report_as_text, view_as_json, view_as_text

    _require_wallet(home)
    try:
        session = TeeSession(start_of(home.wallet, PhoneOptions(require_sandbox=require_sandbox)))
    except TrustedWorldBusyError:
        copy = _kept_view(home)
        if tee or require_sandbox or copy is None:
            raise
        _show_copy(copy, as_json=as_json)
        return
    view = session.invoke(CommandId.SHOW, WalletView)
    report = session.invoke(CommandId.REPORT, Report)
    session.close()
    if as_json:
        print_json({**view_as_json(view), **({"tee": report_as_json(report)} if tee else {})})
    else:
        click.echo(view_as_text(view))
        if tee:
            click.echo(report_as_text(report))


def _kept_view(home: Home) -> WalletView | None:
    from wallet.history import History

    kept = History(home.wallet)
    try:
        return kept.view()
    finally:
        kept.close()


def _show_copy(view: WalletView, *, as_json: bool) -> None:
    """Show the client application's copy, since the wallet is busy being a card."""
    from wallet.ui import view_as_json, view_as_text

    if as_json:
        print_json({**view_as_json(view), "copy": True})
    else:
        click.echo(f"{view_as_text(view)}\nThe wallet is serving; this is as it was after its last tap.")


@cli.command()
@common_options
def history(home: Home, as_json: bool) -> None:
    """Show what happened at the card, newest last, with the reasons that no terminal gets to hear."""
    from wallet.history import History
    from wallet.ui import entry_as_json, entry_as_text

    _require_wallet(home)
    kept = History(home.wallet)
    entries = kept.entries()
    kept.close()
    if as_json:
        print_json([entry_as_json(entry) for entry in entries])
    else:
        click.echo("\n".join(map(entry_as_text, entries)) or "Nothing has happened yet.")


def main() -> None:
    """Run `tap-wallet`."""
    run(cli, "tap-wallet")
