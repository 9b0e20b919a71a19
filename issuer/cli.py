# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""`tap-issuer`: set up the scheme, see what it knows, block a card or a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import click

from console.cli import EVERYWHERE, common_options, run
from console.home import Home, make_private
from console.ui import money, print_json
from protocol.money import Amount
from protocol.transport.issuer import MAX_MESSAGE

_LENGTH_BYTES = 4


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, epilog=EVERYWHERE)
@click.version_option(package_name="taplab")
def cli() -> None:
    """The issuer of a contactless payment laboratory.

    It certifies wallets and terminals, hands out money and says what is blocked. There is no server: wallets and
    terminals start `tap-issuer handle` when they need it.

    \b
    A first payment, from nothing:
      tap-issuer init
      tap-wallet init && tap-wallet apply && tap-wallet load 100.00 EUR
      tap-pos init
      tap-wallet serve          (in one window)
      tap-pos charge 12.50 EUR  (in another)
    """


@cli.command()
@common_options
def init(home: Home, as_json: bool) -> None:
    """Make a new issuer and acquirer: their keys and an empty database."""
    from issuer import keys
    from issuer.database import Database, require_none

    folder = make_private(home.issuer)
    require_none(folder)
    keys.create(folder)
    Database(folder, create=True).close()  # comes last: a torn try has no tables and can be repeated
    if as_json:
        print_json({"issuer": str(folder)})
    else:
        click.echo(f"The issuer is ready in {folder}. Next: tap-wallet init, tap-pos init.")


@cli.command()
@click.option("--cards", is_flag=True, help="List every virtual card too, with the serial to block it by.")
@common_options
def show(home: Home, as_json: bool, cards: bool) -> None:
    """Show wallets, terminals and totals; card numbers are masked."""
    from issuer.register import Register

    register = Register(home.issuer)
    wallets, terminals = register.wallets(), register.terminals()
    listed = register.cards() if cards else []
    register.close()
    if as_json:
        print_json({"wallets": _plain(wallets), "terminals": _plain(terminals), "cards": _plain(listed)})
        return
    for row in wallets:
        state = "blocked" if row.blocked else "put back to an older copy" if row.restored else "good"
        click.echo(
            f"wallet   {row.device}  {row.cards} cards, {'' if row.locked_down else 'not '}locked down, {state}\n"
            f"         {money(row.loaded)} loaded: {money(row.holds)} in the wallet, {money(row.open)} deducted and not"
            f" settled, {money(row.paid)} with merchants, {money(row.lost)} lost"
        )
    for terminal in terminals:
        state = "blocked" if terminal.blocked else f"valid until {terminal.valid_until}"
        click.echo(f"terminal {terminal.terminal_id}  {terminal.merchant}, {money(terminal.paid)} paid to it, {state}")
    for card in listed:
        click.echo(f"card     {card.serial}  {card.masked_number}{'  blocked' if card.blocked else ''}")
    if not wallets and not terminals:
        click.echo("Nobody has applied yet. Next: tap-wallet init, tap-pos init.")


@cli.command()
@click.argument("kind", type=click.Choice(["terminal", "card"]))
@click.argument("name")
@common_options
def block(home: Home, as_json: bool, kind: str, name: str) -> None:
    """Block the terminal of id NAME, or the card of serial NAME.

    Terminals and wallets obey once they have the new list: tap-pos sync, tap-wallet sync.
    """
    from issuer.register import Register

    register = Register(home.issuer)
    (register.block_terminal if kind == "terminal" else register.block_card)(name)
    register.close()
    if as_json:
        print_json({"blocked": kind, "name": name})
    else:
        click.echo(f"The {kind} {name} is blocked. Next: tap-pos sync, tap-wallet sync.")


@cli.command("unblock-pin")
@click.argument("device")
@common_options
def unblock_pin(home: Home, as_json: bool, device: str) -> None:
    """Let the wallet of id DEVICE have its PIN tries back, once: its user then runs `tap-wallet pin --unblock`."""
    from issuer.register import Register

    register = Register(home.issuer)
    register.allow_unblocking(device)
    register.close()
    if as_json:
        print_json({"device": device, "may_unblock": True})
    else:
        click.echo("The wallet may unblock its PIN once. Next, by its user: tap-wallet pin --unblock.")


@cli.command()
@click.option(
    "--at",
    type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]),
    metavar="UTC",
    help="Settle as if it were that time, as 2026-12-31 or 2026-12-31T18:00:00: seven days need not be waited for.",
)
@common_options
def settle(home: Home, as_json: bool, at: datetime | None) -> None:
    """Give back what no terminal claimed: debits that a wallet listed more than seven days ago.

    Claims are paid and VOIDs are carried out as they arrive (tap-pos settle). The wallet gets its money by its next
    tap-wallet sync.
    """
    from issuer.service import Issuer

    issuer = Issuer(home.issuer, clock_at(at))
    refunded = issuer.settle()
    issuer.close()
    if as_json:
        print_json({"refunded": refunded})
    else:
        click.echo(f"{refunded} debits were not claimed in time; their wallets get the money back when they sync.")


def clock_at(moment: datetime | None) -> Callable[[], float]:
    """Return a clock that stands at `moment` (UTC), or the real one."""
    return time.time if moment is None else lambda: moment.replace(tzinfo=UTC).timestamp()


def _plain(rows: Sequence[Any]) -> list[dict[str, Any]]:
    """Return entries of the register for programs, amounts as decimal numbers."""
    return [{field.name: _plain_value(getattr(row, field.name)) for field in fields(row)} for row in rows]


def _plain_value(value: Any) -> Any:
    return str(value.decimal) if isinstance(value, Amount) else value


@cli.command(hidden=True)
@click.option("--dir", "folder", type=click.Path(path_type=Path), required=True)
@click.option("--at", type=float, help="Seconds since 1970 at which the issuer's clock stands.")
def handle(folder: Path, at: float | None) -> None:
    """Answer request messages on standard input until it ends (wallets and terminals start this)."""
    from issuer.service import Issuer

    issuer = Issuer(folder, time.time if at is None else lambda: at)
    while (request := _read(sys.stdin.buffer)) is not None:
        answer = issuer.handle(request)
        sys.stdout.buffer.write(len(answer).to_bytes(_LENGTH_BYTES, "big") + answer)
        sys.stdout.buffer.flush()
    issuer.close()


def _read(stream: BinaryIO) -> bytes | None:
    head = stream.read(_LENGTH_BYTES)
    length = int.from_bytes(head, "big")
    if len(head) < _LENGTH_BYTES or length > MAX_MESSAGE:
        return None
    message = stream.read(length)
    return message if len(message) == length else None


def main() -> None:
    """Run `tap-issuer`."""
    run(cli, "tap-issuer")
