# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""`tap-issuer`: set up the scheme, see what it knows, block a card or a terminal."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import BinaryIO

import click

from console.cli import EVERYWHERE, common_options, run
from console.home import Home, make_private
from console.ui import money, print_json
from protocol.errors import UsageError
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
    from issuer.database import FILE_NAME, Database

    folder = make_private(home.issuer)
    if (folder / FILE_NAME).exists():
        raise UsageError(f"there is an issuer in {folder} already; it is kept as it is")
    keys.create(folder)
    Database(folder, create=True).close()  # comes last: a torn try has none and can be repeated
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
        print_json(
            {
                "wallets": [{**asdict(row), "loaded": str(row.loaded)} for row in wallets],
                "terminals": [asdict(row) for row in terminals],
                "cards": [asdict(row) for row in listed],
            }
        )
        return
    for row in wallets:
        state = "blocked" if row.blocked else ("locked down" if row.locked_down else "not locked down")
        click.echo(f"wallet   {row.device}  {row.cards} cards, {money(row.loaded)} loaded, {state}")
    for terminal in terminals:
        state = "blocked" if terminal.blocked else f"valid until {terminal.valid_until}"
        click.echo(f"terminal {terminal.terminal_id}  {terminal.merchant}, {state}")
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


@cli.command(hidden=True)
@click.option("--dir", "folder", type=click.Path(path_type=Path), required=True)
def handle(folder: Path) -> None:
    """Answer request messages on standard input until it ends (wallets and terminals start this)."""
    from issuer.service import Issuer

    issuer = Issuer(folder)
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
