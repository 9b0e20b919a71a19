# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""`scripts/demo`: an issuer, a wallet and a terminal are made from nothing, and the wallet pays the terminal by tap."""

from __future__ import annotations

import shutil
import signal
import socket
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from console.cli import run
from console.home import Home
from console.ui import money, print_json
from lab import key_process, processes
from lab.fixtures import Setup, set_up
from lab.key_process import KeyProcess
from lab.pcscd import PcscService
from lab.processes import WalletProcess
from protocol.errors import TapLabError
from protocol.money import Amount
from protocol.transport import pcsc

AMOUNT = "12.50"
KEY_AMOUNT, KEY_BALANCE = "250.00", "500.00"
LIMIT, KEY_LIMIT = "50.00", "100.00"
_CONSENT_SECONDS = 20.0
_DESIGN_STEPS = ("S1", "S2", "S3", "S4", "S5", "S6", "S7", "S8", "S9")
LINKS = ("loopback", "nfcpy", "pcsc")
_LINK_HELP = "A Unix socket; nfcpy's UDP device at both ends; or pcscd with vpcd and pyscard."
_RULE = "─" * 60


@dataclass(frozen=True, slots=True)
class Line:
    """One step of the trace: which, who, what, when (nanoseconds since 1970)."""

    step: str
    who: str
    text: str
    at: int

    def as_json(self) -> dict[str, Any]:
        """Return the step for programs."""
        return {"step": self.step, "who": self.who, "text": self.text, "at": self.at}


@dataclass(frozen=True, slots=True)
class Demonstration:
    """What the tap was: the terminal's report, the wallet's events and the processes that took part."""

    link: str
    terminal: dict[str, Any]
    wallet: list[dict[str, Any]]
    lines: tuple[Line, ...]
    balance_before: Amount
    pids: dict[str, int]
    exit_code: int
    asked: tuple[str, ...] = ()

    @property
    def balance_after(self) -> Amount:
        """What the trusted world said it held after the tap."""
        said = [event["balance"] for event in self.wallet if "balance" in event]
        unit = self.balance_before.currency.code
        return Amount.parse(said[-1], unit) if said else self.balance_before

    def as_json(self) -> dict[str, Any]:
        """Return everything for programs."""
        kept = ("outcome", "amount", "currency", "receipt_verified", "apdus", "bytes_command", "bytes_response",
                "air_ms_106", "air_ms_106_to_receipt")  # fmt: skip
        return {
            **{key: self.terminal[key] for key in kept},
            "link": self.link,
            "balance_before": str(self.balance_before.decimal),
            "balance_after": str(self.balance_after.decimal),
            "processes": self.pids,
            "steps": [line.as_json() for line in self.lines],
            **({"asked": list(self.asked), "key_bytes": self.terminal["key_bytes"]} if self.asked else {}),
        }


@dataclass(frozen=True, slots=True)
class LinkEnds:
    """The URLs of both ends of a link."""

    card: str
    terminal: str


def open_link(name: str, home: Home, stack: ExitStack) -> LinkEnds:
    """Return the ends of a link by its name, with what it needs started until `stack` is closed."""
    if name == "nfcpy":
        port = free_udp_port()
        return LinkEnds(f"nfc:udp:127.0.0.1:{port}", f"nfc:udp:127.0.0.1:{port}")
    if name == "pcsc":
        pcsc.require()
        stack.enter_context(PcscService())
        return LinkEnds("vpcd:", "pcsc:")
    return LinkEnds(home.link, home.link)


def free_udp_port() -> int:
    """Return a UDP port of the loopback that nobody uses now, and that has no name: nfcpy cannot read names."""
    while True:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        try:
            socket.getservbyport(port)
        except OSError:
            return port


def demonstrate(link: str, *, with_key: bool = False) -> Demonstration:
    """Set up a laboratory in a folder of its own, pay once, and remove the folder; `with_key`, what needs a Trusted Key."""
    folder = Path(tempfile.mkdtemp(prefix="taplab-demo-"))
    try:
        return _demonstrate(Home(folder), link, with_key=with_key)
    finally:
        shutil.rmtree(folder)


def _demonstrate(home: Home, link: str, *, with_key: bool) -> Demonstration:
    lines: list[Line] = []
    amount, setup = (KEY_AMOUNT, Setup(balance=KEY_BALANCE)) if with_key else (AMOUNT, Setup())

    def tell(step: str, who: str, text: str) -> None:
        lines.append(Line(step, who, text, time.time_ns()))

    set_up(home, setup, lambda text: tell("S1", "issuer, wallet", text))
    with ExitStack() as stack:
        ends = open_link(link, home, stack)
        key = stack.enter_context(KeyProcess(home)) if with_key else None
        asked = [key_process.pair(home, key, LIMIT, KEY_LIMIT)] if key else []
        wallet = stack.enter_context(WalletProcess(home.path, ends.card))
        if key:
            tell("K1", "key, wallet", f"paired: the user pressed OK at “{asked[0]}”")
            asked.append(_agree(home, key, wallet, Amount.parse(amount, setup.currency), ends.terminal))
            tell("K4", "key", f"the user pressed OK at “{asked[1]}”")
        since = time.time_ns()
        report, code, pid = processes.charge(home.path, amount, setup.currency, ends.terminal)
        wallet.wait_for("tap ended", since=since)
        events = [one for one in wallet.events if one["at"] >= since]
        pids = {"pos": pid, **wallet.processes, **({"key": key.pid} if key else {})}
    lines += [Line(step["step"], "terminal", step["text"], step["at"]) for step in report["steps"]]
    lines += [Line(one["step"], "wallet", one["text"], one["at"]) for one in events if one["step"] in _DESIGN_STEPS]
    before = Amount.parse(setup.balance, setup.currency)
    ordered = tuple(sorted(lines, key=lambda line: line.at))
    return Demonstration(link, report, events, ordered, before, pids, code, tuple(asked))


def _agree(home: Home, key: KeyProcess, wallet: WalletProcess, amount: Amount, link: str) -> str:
    """Tap once, so that the wallet asks; press OK on the Key; return what it asked once the wallet knows."""
    report, _, _ = processes.charge(home.path, str(amount.decimal), amount.currency.code, link)
    if report["outcome"] != "see phone":
        raise TapLabError(f"the first tap was {report['outcome']}")
    question = key.press_ok()
    wallet.wait_for("consent", _CONSENT_SECONDS)
    return question


def _as_text(shown: Demonstration) -> str:
    start = shown.lines[0].at
    trace = [f"{line.step}  {(line.at - start) / 1e6:8.1f} ms  {line.who:<14}  {line.text}" for line in shown.lines]
    report = shown.terminal
    paid = Amount.parse(report["amount"], report["currency"])
    rows = [
        ("outcome", report["outcome"].upper()),
        ("paid", f"{money(paid)} to Corner Bakery"),
        ("balance", f"{money(shown.balance_before)} before, {money(shown.balance_after)} after"),
        ("card", report["card"] or "none"),
        ("receipt", _verified(report)),
        ("processes", ", ".join(f"{name} {pid}" for name, pid in shown.pids.items())),
        ("on the link", f"{report['apdus']} APDUs, {report['bytes_command']} + {report['bytes_response']} bytes"),
        ("on the air", f"{report['air_ms_106']} ms at 106 kbit/s, {report['air_ms_106_to_receipt']} ms to the receipt"),
    ]
    return "\n".join([*trace, _RULE, *(f"{name:<12} {value}" for name, value in rows), _RULE])


def _verified(report: dict[str, Any]) -> str:
    if not report["receipt_verified"]:
        return "none"
    return (
        f"signatures of card and Key verified, {report['key_bytes']} bytes more"
        if report["key_bytes"]
        else "signature verified"
    )


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--link", type=click.Choice(LINKS), default="loopback", show_default=True, help=_LINK_HELP)
@click.option(
    "--key", is_flag=True, help="Pay 250.00 EUR, with a Trusted Key that is asked on its own screen and signs too."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output, for programs.")
def cli(link: str, key: bool, as_json: bool) -> int:
    """Pay 12.50 EUR by tap, from nothing, with real processes; then remove every trace of it."""
    shown = demonstrate(link, with_key=key)
    if as_json:
        print_json(shown.as_json())
    else:
        click.echo(_as_text(shown))
    return shown.exit_code


def main() -> None:
    """Run `scripts/demo`; asked to end, it removes what it made first."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda which, _: sys.exit(128 + which))
    run(cli, "demo")


if __name__ == "__main__":
    main()
