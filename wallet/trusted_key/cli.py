# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""`tap-key`: the Trusted Key."""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import TYPE_CHECKING

import click

from console.cli import EVERYWHERE, common_options, run, trace_option
from console.home import Home, make_private
from console.ui import print_json
from protocol.errors import LinkUnavailableError, MissingOnMachineError, UsageError

if TYPE_CHECKING:
    from protocol.transport.base import CardPort
    from wallet.trusted_key.key import TrustedKey
    from wallet.trusted_key.screen import Frame

_EDGE = "+" + "-" * 22 + "+"


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, epilog=EVERYWHERE)
@click.version_option(package_name="taplab")
def cli() -> None:
    """A small device beside the phone, a card of its own: it keeps objects and keys, and asks its user on its own screen.

    \b
      tap-key init                    make the Key
      tap-key serve                   be a card until Ctrl-C
      tap-key face                    its screen and buttons, in another window
      tap-key press ok                press a button from a script
    """


modules_option = click.option(
    "--modules",
    metavar="NAMES",
    help="Which modules it has, separated by commas: channel, storage, computing, interaction. Default: all of them.",
)


def _named(modules: str | None) -> list[str] | None:
    return None if modules is None else [name.strip() for name in modules.split(",") if name.strip()]


@cli.command()
@modules_option
@common_options
def init(home: Home, as_json: bool, modules: str | None) -> None:
    """Make a Key: its folder, its root key, its empty flash. One that is there keeps all that it holds.

    --modules is kept for every later `serve`; on a Key that is there it changes the choice.
    """
    from wallet.trusted_key.flash import FILE_NAME, Flash
    from wallet.trusted_key.key import choose_modules, modules_named, modules_of

    names = _named(modules)
    chosen = None if names is None else modules_named(names)
    existed = (home.key / FILE_NAME).exists()
    with Flash(make_private(home.key), create=True) as flash:
        if chosen is not None:
            choose_modules(flash, chosen)
        kept = [module.title for module in modules_of(flash)]
    if as_json:
        print_json({"key": str(home.key), "created": not existed, "modules": kept})
    else:
        state = "was there already and is kept" if existed else "is ready"
        click.echo(f"The Key in {home.key} {state}: {', '.join(kept) or 'no module'}. Next: tap-key serve.")


@cli.command()
@click.argument("link", required=False)
@modules_option
@trace_option
@common_options
def serve(home: Home, as_json: bool, link: str | None, modules: str | None, trace: bool) -> None:
    """Be a card at LINK until Ctrl-C (default: a socket in the Key's folder). `tap-key face` shows it in another window.

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
    from wallet.trusted_key.control import ControlServer

    url = link or home.key_link
    with _opened(home, modules) as key:
        port = open_card_end(url)
        control: ControlServer | None = None
        signal.signal(signal.SIGTERM, _interrupt)
        try:
            control = ControlServer(home.key, key.panel)
            confined = _confine(home, url)
            control.start()
            _say_ready(key, url, confined=confined, as_json=as_json)
            port.serve(TracingCard(key.card, print_exchange) if trace else key.card)
        finally:
            _close_port(port)
            if control is not None:
                control.close()


def _opened(home: Home, modules: str | None) -> TrustedKey:
    from wallet.trusted_key.flash import FILE_NAME
    from wallet.trusted_key.key import TrustedKey

    if not (home.key / FILE_NAME).exists():
        raise UsageError(f"there is no Key in {home.path}; make one with `tap-key init`")
    return TrustedKey(home.key, _named(modules))


def _confine(home: Home, url: str) -> bool:
    """Shut the process in where its link lets it: a device of nfcpy's is opened again and again, in /dev."""
    from wallet.environment.lockdown import confine_files

    return not url.startswith("nfc:") and confine_files(home.key)


def _say_ready(key: TrustedKey, url: str, *, confined: bool, as_json: bool) -> None:
    import os

    if as_json:
        print_json(
            {"event": "ready", "link": url, "modules": list(key.modules), "confined": confined, "pid": os.getpid()}
        )
        return
    click.echo(f"The Key is at {url}: {', '.join(key.modules) or 'no module'}. Ctrl-C ends it.")
    if not confined:
        click.echo("It is not confined to its folder: the kernel has no Landlock, or the link needs devices.")


def _close_port(port: CardPort) -> None:
    """Close the link; its socket file stays where the Key may not remove it, as after a kill, and does no harm."""
    import contextlib

    with contextlib.suppress(PermissionError):
        port.close()


def _interrupt(_: int, __: FrameType | None) -> None:
    raise KeyboardInterrupt


@cli.command()
@click.argument("button", type=click.Choice(["ok", "cancel", "up", "down"]))
@common_options
def press(home: Home, as_json: bool, button: str) -> None:
    """Press BUTTON of the Key that serves, once, and say what that did: `nothing` when nothing was asked.

    \b
      confirmed, cancelled   it answered the question on the screen
      menu                   up and down open the user's menu, and move in it
      queued, closed         ok took the line that is marked; cancel closed the menu
    """
    from wallet.trusted_key.control import ControlClient
    from wallet.trusted_key.screen import Button

    with ControlClient(home.key) as client:
        did = client.press(Button(button))
    if as_json:
        print_json({"button": button, "did": did})
    else:
        click.echo(did)


@cli.command()
@common_options
def show(home: Home, as_json: bool) -> None:
    """Show the screen of the Key that serves."""
    from wallet.trusted_key.control import ControlClient, frame_as_json

    with ControlClient(home.key) as client:
        frame = client.frame()
    if as_json:
        print_json(frame_as_json(frame))
    else:
        click.echo(_drawn(frame))


def _drawn(frame: Frame) -> str:
    return "\n".join([_EDGE, *(f"| {line} |" for line in frame.lines), _EDGE])


@cli.command()
@common_options
def face(home: Home, as_json: bool) -> None:
    """Be the Key's screen and buttons in this terminal: enter, escape and the arrows press them, q leaves.

    With --json it draws nothing and prints each new screen on a line, for programs.
    """
    from wallet.trusted_key.control import ControlClient, frame_as_json

    if as_json:
        with ControlClient(home.key) as client:
            for frame in client.watch():
                print_json(frame_as_json(frame))
        return
    try:
        from wallet.trusted_key.face import KeyFace
    except ModuleNotFoundError:
        raise MissingOnMachineError("textual cannot be used; install it with `pip install -e '.[key-face]'`") from None
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("the face needs a terminal; tap-key press and tap-key face --json do without one")
    shown = KeyFace(home.key)
    shown.run()
    if shown.key_has_ended:
        raise LinkUnavailableError("the Key has ended; start it with tap-key serve")


def main() -> None:
    """Run `tap-key`."""
    run(cli, "tap-key")
