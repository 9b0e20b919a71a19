# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""`tap-pos`: the terminal."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
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
    from pos.outcome import Outcome
    from pos.terminal import Steps
    from pos.ui import Screen


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, epilog=EVERYWHERE)
@click.version_option(package_name="taplab")
def cli() -> None:
    """A payment terminal: it asks a contactless wallet for a virtual card, verifies it and charges it.

    \b
      tap-pos init                    make the terminal, certified by the acquirer
      tap-pos charge 12.50 EUR        charge the next card
      tap-pos history                 what was charged
    """


def _up_to(most: float) -> Callable[[click.Context, click.Parameter, float | None], float | None]:
    """Return what refuses a number that is below 0, above `most`, or none at all."""

    def check(_: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
        if value is not None and not 0 <= value <= most:  # false for what is not a number, too
            raise UsageError(f"{parameter.opts[0]} takes 0 to {most:g}")
        return value

    return check


MAX_TIMEOUT = 86_400
timeout_option = click.option(
    "--timeout", default=30.0, show_default=True, callback=_up_to(MAX_TIMEOUT), help="Seconds to wait for a card."
)
issuer_option = click.option("--issuer", metavar="URL", help="embedded:DIR. Default: the issuer of this --home.")


@cli.command()
@click.option("--terminal-id", default="TERM0001", show_default=True, help="One to eight characters, one per acquirer.")
@click.option(
    "--merchant", default="Corner Bakery", show_default=True, help="Shown to the shopper; up to 16 characters."
)
@click.option("--category", default=5462, show_default=True, type=click.IntRange(0, 9999), help="ISO 18245 code.")
@click.option("--currency", default="EUR", show_default=True, help="Currency this terminal charges in.")
@issuer_option
@common_options
def init(
    home: Home, as_json: bool, terminal_id: str, merchant: str, category: int, currency: str, issuer: str | None
) -> None:
    """Make a terminal: its keys, its certificate, an empty journal."""
    from pos import identity
    from pos.journal import Journal
    from protocol.certificate import MERCHANT_NAME_LENGTH, TERMINAL_ID_LENGTH, Merchant
    from protocol.transport.issuer import IssuerLink

    if (home.pos / identity.CERTIFICATE_FILE).exists():
        raise UsageError(f"there is a terminal in {home.pos} already; it is kept as it is")
    for what, text, limit in (
        ("terminal id", terminal_id, TERMINAL_ID_LENGTH),
        ("merchant", merchant, MERCHANT_NAME_LENGTH),
    ):
        if not (1 <= len(text) <= limit and text.isascii() and text.isprintable()):
            raise UsageError(f"a {what} has 1 to {limit} printable ASCII characters, not {text!r}")
    try:
        unit = Currency.of(currency)
    except ValueError as error:
        raise UsageError(f"{error}; write it as EUR, USD, JPY, …") from None
    make_private(home.pos)
    with Journal(home.pos), IssuerLink(issuer or home.issuer_url) as link:
        made = identity.create(home.pos, terminal_id, Merchant(merchant, category, unit.number), link)
    until = made.certificate.valid_until.isoformat()
    example = Amount(1250 * 10**unit.exponent // 100, unit).decimal
    if as_json:
        print_json({"terminal": str(home.pos), "terminal_id": terminal_id, "merchant": merchant, "valid_until": until})
    else:
        click.echo(
            f"Terminal {terminal_id} of {merchant} is ready, certified until {until}. Next: tap-pos charge {example}."
        )


@cli.command()
@click.argument("amount")
@click.argument("currency", required=False)
@click.argument("link", required=False)
@click.option("--directory", is_flag=True, help="Read the payment directory first instead of selecting by name.")
@click.option("--name", default=DEFAULT_NAME.hex().upper(), show_default=True, metavar="HEX", help="Application name.")
@timeout_option
@click.option(
    "--again",
    default=30.0,
    show_default=True,
    callback=_up_to(MAX_TIMEOUT),
    help="Seconds to wait for the same card when a tap was torn and its result is not known.",
)
@click.option(
    "--fault",
    metavar="FAULT",
    help="Test the other side: tear, drop, delay, duplicate or corrupt @frame:N, @byte:N or @time:MS, as tear@frame:7.",
)
@click.option(
    "--relay",
    type=click.Choice(["off", "report", "decline"]),
    default="report",
    show_default=True,
    help="What to do about a card whose answer to RELAY CHECK comes later than the link's bound.",
)
@click.option(
    "--relay-bound",
    type=float,
    callback=_up_to(60_000),
    metavar="MS",
    help="Milliseconds beyond the modelled air time that RELAY CHECK may take. Default: by link (docs/links.md).",
)
@trace_option
@common_options
def charge(
    home: Home,
    as_json: bool,
    amount: str,
    currency: str | None,
    link: str | None,
    directory: bool,
    name: str,
    timeout: float,
    again: float,
    fault: str | None,
    relay: str,
    relay_bound: float | None,
    trace: bool,
) -> int:
    """Charge AMOUNT of CURRENCY (default: the terminal's) to the next card at LINK (default: the socket of this --home).

    \b
    LINK is one of
      socket:/path/of/socket     another process on this machine
      socket:127.0.0.1:35963     the same over TCP, vpcd's protocol
      pcsc: or pcsc:READER       a PC/SC reader
      nfc:usb, nfc:tty:USB0:pn532, nfc:udp:127.0.0.1:54321   a device of nfcpy's
    with ?listen if the card is the one that connects, ?short for short APDU lengths only.

    The exit code tells how it ended: 0 approved, 10 declined, 11 see phone, 12 torn, 13 no application,
    14 not verified, 15 terminal not accepted, 16 no card.
    """
    from pos.relay import RelayPolicy
    from pos.terminal import Terminal, TerminalOptions
    from pos.ui import Screen
    from protocol.transport.fault import Fault
    from protocol.transport.opening import LinkUrl

    if currency is not None and ":" in currency:
        currency, link = None, currency
    LinkUrl.parse(link or home.link)
    require_shared(link or home.link)
    options = TerminalOptions(
        _name(name),
        use_directory=directory,
        timeout=timeout,
        again=again,
        fault=Fault.parse(fault) if fault is not None else None,
        relay=RelayPolicy(relay),
        relay_bound_ms=relay_bound,
    )
    with Terminal.open(home.path, options) as terminal:
        wanted = Amount.parse(amount, currency or terminal.currency.code)
        terminal.require_chargeable(wanted)
        screen = None if as_json else Screen(wanted, terminal.merchant)
        outcome = _follow(terminal.transaction(wanted, link or home.link), screen)
    _report(outcome, screen, trace=trace)
    return exit_code(outcome)


def _report(outcome: Outcome, screen: Screen | None, *, trace: bool) -> None:
    """Tell how it ended; who paid has paid, whether or not it can be shown."""
    from console.trace import print_trace
    from pos.ui import outcome_as_json

    with suppress(OSError, ValueError, KeyboardInterrupt):
        if screen:
            screen.result(outcome)
        else:
            print_json(outcome_as_json(outcome))
        if trace:
            print_trace(outcome.trace)


def _follow(steps: Steps, screen: Screen | None) -> Outcome:
    """Show each step as it is taken and return the outcome; a screen that fails does not stop a payment."""
    if screen:
        screen.present_card()
    try:
        try:
            while True:
                progress = next(steps)
                with suppress(OSError, ValueError):
                    if screen:
                        screen.progress(progress)
        except KeyboardInterrupt as pressed:
            steps.throw(pressed)  # only the transaction knows whether something is being charged
            raise
    except StopIteration as finished:
        outcome: Outcome = finished.value
        return outcome


def exit_code(outcome: Outcome) -> ExitCode:
    """Return the exit code of an outcome."""
    from pos.outcome import OutcomeKind

    return {
        OutcomeKind.APPROVED: ExitCode.OK,
        OutcomeKind.DECLINED: ExitCode.DECLINED,
        OutcomeKind.SEE_PHONE: ExitCode.SEE_PHONE,
        OutcomeKind.TORN: ExitCode.TORN,
        OutcomeKind.NO_APPLICATION: ExitCode.NO_APPLICATION,
        OutcomeKind.NOT_VERIFIED: ExitCode.NOT_VERIFIED,
        OutcomeKind.NOT_ACCEPTED: ExitCode.NOT_ACCEPTED,
        OutcomeKind.NO_CARD: ExitCode.NO_CARD,
    }[outcome.kind]


def _name(text: str) -> bytes:
    try:
        name = bytes.fromhex(text)
    except ValueError:
        raise UsageError("an application name is written in hexadecimal, as F054415000") from None
    if not 5 <= len(name) <= 16:
        raise UsageError("an application name has 5 to 16 bytes (ISO 7816-4 §12.2.3)")
    return name


@cli.command()
@issuer_option
@common_options
def sync(home: Home, as_json: bool, issuer: str | None) -> None:
    """Fetch the issuer's newest list of blocked cards."""
    from pos import identity
    from protocol.transport.issuer import IssuerLink

    own = identity.load(home.pos)
    with IssuerLink(issuer or home.issuer_url) as link:
        listed = identity.fetch_list(home.pos, own.anchors, link)
    if as_json:
        print_json({"blocked_cards": len(listed.numbers), "blocked_terminals": len(listed.terminals)})
    else:
        click.echo(f"The terminal has the newest list: {len(listed.numbers)} cards are blocked.")


@cli.command()
@click.option(
    "--void-after",
    default=24.0,
    show_default=True,
    metavar="HOURS",
    type=float,
    callback=_up_to(MAX_TIMEOUT),
    help="Give up what has been unknown for so long: its wallet gets the money back, and it is never claimed.",
)
@issuer_option
@common_options
def settle(home: Home, as_json: bool, void_after: float, issuer: str | None) -> None:
    """Claim the receipts at the issuer, and give up what stayed unknown.

    A torn tap is settled by the same wallet's next tap here. When that does not come, this ends it.
    """
    from pos.terminal import Terminal
    from pos.ui import settled_as_json, settled_as_text
    from protocol.transport.issuer import IssuerLink

    with Terminal.open(home.path) as terminal, IssuerLink(issuer or home.issuer_url) as link:
        settled = terminal.settle(link, 3600 * void_after)
        unit = terminal.currency
    if as_json:
        print_json(settled_as_json(settled, unit))
    else:
        click.echo(settled_as_text(settled, unit))


@cli.command()
@click.option("--last", type=click.IntRange(1), metavar="N", help="Only the newest N.")
@common_options
def history(home: Home, as_json: bool, last: int | None) -> None:
    """Show every transaction of this terminal, newest last."""
    from pos import identity
    from pos.journal import Journal
    from pos.ui import record_as_json, record_as_text

    identity.load(home.pos)
    with Journal(home.pos, create=False) as journal:
        records = journal.records(last or -1)
    if as_json:
        print_json([record_as_json(record) for record in records])
    else:
        click.echo("\n".join(map(record_as_text, records)) or "Nothing has been charged yet.")


@cli.command()
@common_options
def show(home: Home, as_json: bool) -> None:
    """Show who this terminal is and what it has taken."""
    from pos import identity
    from pos.journal import Journal, State

    own = identity.load(home.pos)
    certificate = own.certificate
    unit = Currency.of(certificate.merchant.currency)
    with Journal(home.pos, create=False) as journal:
        records = journal.records()
    taken = [one for one in records if one.is_taken]
    sum_taken = Amount(sum(one.amount for one in taken), unit)
    unknown = sum(one.state is State.OPEN and one.verdict is None for one in records)
    if as_json:
        print_json(
            {
                "terminal_id": certificate.terminal_id,
                "merchant": certificate.merchant.name,
                "currency": unit.code,
                "valid_until": certificate.valid_until.isoformat(),
                "taken": str(sum_taken.decimal),
                "transactions": len(taken),
                "result_not_known": unknown,
                "blocked_cards": len(own.blocked.numbers),
            }
        )
        return
    click.echo(
        f"terminal {certificate.terminal_id}   {certificate.merchant.name}, certified until {certificate.valid_until}\n"
        f"taken    {money(sum_taken)} in {len(taken)} transactions, and {unknown} more with a result not known"
    )


@cli.command()
@click.argument("link")
@timeout_option
@trace_option
@common_options
def probe(home: Home, as_json: bool, link: str, timeout: float, trace: bool) -> int:
    """Tell what is in the field of LINK: identifiers, answers, directory, known applications, NDEF content.

    It only selects and reads what any reader may; it never asks for a payment record.
    """
    from console.trace import print_trace
    from pos import probe as probing
    from pos.ui import finding_as_json, finding_as_text
    from protocol.errors import CardSilentError
    from protocol.transport.opening import open_terminal_end

    require_shared(link)
    with open_terminal_end(link) as opened:
        try:
            finding, traced = probing.probe(opened, timeout)
        except CardSilentError as error:
            print_json({"error": str(error), "exit_code": ExitCode.NO_CARD}) if as_json else click.echo(str(error))
            return ExitCode.NO_CARD
    if as_json:
        print_json(finding_as_json(finding))
    else:
        click.echo(finding_as_text(finding))
    if trace:
        print_trace(traced.exchanges)
    return ExitCode.OK


@cli.command()
@common_options
def readers(home: Home, as_json: bool) -> None:
    """List what is attached and what it can do; for what cannot be used, what is missing."""
    from pos import readers as attached
    from pos.ui import reader_as_json, reader_as_text

    found = attached.find()
    if as_json:
        print_json([reader_as_json(reader) for reader in found])
    else:
        click.echo("\n".join(map(reader_as_text, found)) or "No reader is attached. socket: works without one.")


def main() -> None:
    """Run `tap-pos`."""
    run(cli, "tap-pos")
