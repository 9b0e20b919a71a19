# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""`scripts/bench`: how long a tap takes with three real processes, against the floor measured in the same run."""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from console.cli import run
from console.home import Home
from console.ui import print_json, progress_bar
from lab import bench_links, bench_relay
from lab.fixtures import Laboratory, Setup, set_up
from lab.floor import Floor, Shape
from lab.processes import WalletProcess
from pos.outcome import Outcome
from pos.terminal import Terminal, TerminalOptions
from protocol import tally
from protocol.errors import TapLabError
from protocol.money import Amount
from protocol.tally import Operation
from protocol.transport.issuer import IssuerLink
from protocol.transport.opening import open_terminal_end
from wallet.account import Account
from wallet.phone import PhoneOptions, start_of
from wallet.tee.client import TeeSession
from wallet.tee.contract import CommandId, Report

_WARM_UP = 10
_CARDS_FOR_LINKS = 128
_CARDS_AT_ONCE = 64
_LOG = Path("wallet") / "tee" / "state.log"


@dataclass(frozen=True, slots=True)
class Counts:
    """What one tap did: operations at the wallet's TEE and at the terminal, and the shape of it."""

    wallet: dict[Operation, int]
    terminal: dict[Operation, int]
    shape: Shape
    direct: Outcome
    directory: Outcome
    short: Outcome

    def as_json(self) -> dict[str, Any]:
        """Return the counts for programs."""
        crypto = [operation for operation in Operation if operation is not Operation.SYNC]
        return {
            "crypto_ops": {
                "wallet": {operation.value: self.wallet[operation] for operation in crypto},
                "pos": {operation.value: self.terminal[operation] for operation in crypto},
            },
            "syncs": self.wallet[Operation.SYNC] + self.terminal[Operation.SYNC],
            "air": {name: _air(getattr(self, name)) for name in ("direct", "directory", "short")},
        }


def _air(outcome: Outcome) -> dict[str, Any]:
    air = outcome.air
    return {
        "apdus": len(air.lengths),
        "bytes": air.bytes_command + air.bytes_response,
        "ms_106": round(air.milliseconds(), 2),
        "ms_106_to_receipt": round(air.milliseconds_to_receipt, 2),
    }


def count_operations() -> Counts:
    """Take single taps in a laboratory of their own and count what they do."""
    with Laboratory(Setup()) as laboratory:
        laboratory.charge("1.00")  # the first tap also reserves tap numbers
        log = laboratory.home.path / _LOG
        before, size = _tee_counts(laboratory), log.stat().st_size
        own = tally.snapshot()
        direct = laboratory.charge("1.00")
        terminal = tally.since(own)
        after = _tee_counts(laboratory)
        wallet = {operation: after[operation] - before[operation] for operation in Operation}
        shape = Shape(direct.air.lengths, (log.stat().st_size - size) // 2)
        directory = _charge_with(laboratory, TerminalOptions(use_directory=True))
        short = _charge_with(laboratory, TerminalOptions(short=True))
    return Counts(wallet, terminal, shape, direct, directory, short)


def _charge_with(laboratory: Laboratory, options: TerminalOptions) -> Outcome:
    laboratory.terminal.close()
    laboratory.terminal = Terminal.open(laboratory.home.path, options)
    return _approved(laboratory.charge("1.00"))


def _tee_counts(laboratory: Laboratory) -> dict[Operation, int]:
    report = laboratory.phone.tee.invoke(CommandId.REPORT, Report)
    return dict(zip(Operation, report.operations, strict=True))


def _approved(outcome: Outcome) -> Outcome:
    if not outcome.approved:
        raise TapLabError(f"a tap of the measurement was not approved: {outcome}")
    return outcome


def measure(taps: int, shape: Shape, tick: Callable[[], None]) -> dict[str, Any]:
    """Time `taps` taps and as many floors in turn, in three processes each."""
    folder = Path(tempfile.mkdtemp(prefix="taplab-bench-"))
    try:
        return _measure(Home(folder), taps, shape, tick)
    finally:
        shutil.rmtree(folder)


def _measure(home: Home, taps: int, shape: Shape, tick: Callable[[], None]) -> dict[str, Any]:
    set_up(home, Setup(balance="1000.00", cards=_CARDS_AT_ONCE))
    _stock_up(home, taps + _CARDS_FOR_LINKS)
    amount = Amount.parse("0.01", "EUR")
    with WalletProcess(home.path, home.link) as wallet, Terminal.open(home.path) as terminal:
        link, floor = open_terminal_end(home.link), Floor(home.path, shape)
        times: list[float] = []
        floors: list[float] = []
        for index in range(taps + _WARM_UP):
            started = time.perf_counter()
            _approved(terminal.charge(amount, link))
            seconds = time.perf_counter() - started
            least = floor.tap()
            if index >= _WARM_UP:
                times.append(seconds)
                floors.append(least)
                tick()
        memory = {"pos": _memory(os.getpid()), **{name: _memory(pid) for name, pid in wallet.processes.items()}}
        link.close()
        floor.close()
    by_link = {"tap_ms_p50_by_link": bench_links.measure_taps(home), **bench_relay.measure_relay(home)}
    return {**_statistics(times, floors), "memory_mib": memory, **by_link}


def _statistics(times: list[float], floors: list[float]) -> dict[str, Any]:
    p50, floor = statistics.median(times), statistics.median(floors)
    return {
        "taps": len(times),
        "tap_ms_p50": round(1000 * p50, 2),
        "tap_ms_p95": round(1000 * statistics.quantiles(times, n=20)[-1], 2),
        "floor_ms": round(1000 * floor, 2),
        "tap_over_floor": round(p50 / floor, 2),
        "taps_per_second": round(len(times) / sum(times), 1),
    }


def _stock_up(home: Home, taps: int) -> None:
    """Get cards for every tap, so that no refill falls into the measurement."""
    tee = TeeSession(start_of(home.wallet, PhoneOptions()))
    with IssuerLink(home.issuer_url) as issuer:
        account = Account(tee, issuer)
        view = account.view()
        while view.cards_left < taps + _CARDS_AT_ONCE:
            view = account.apply(view.currency, _CARDS_AT_ONCE)
    tee.close()


def _memory(pid: int) -> float:
    """Return the resident memory of a process in MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return round(int(line.split()[1]) / 1024, 1)


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--taps", default=200, show_default=True, type=click.IntRange(20, 2000), help="How many to time.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output, for programs.")
def cli(taps: int, as_json: bool) -> None:
    """Measure a tap in three processes over a Unix socket against its floor, and count what it does.

    The floor is the same cryptography, the same number of synced writes and the same bytes over the same hops with
    nothing else; it is timed in turn with the taps, and the ratio is what to compare between machines.
    """
    with progress_bar() as progress:
        task = progress.add_task("taps", total=taps)
        counts = count_operations()
        result = {**measure(taps, counts.shape, lambda: progress.advance(task)), **counts.as_json()}
        progress.update(task, description="links")
        result |= {**bench_links.measure_vpcd(), **bench_links.measure_nfc()}
    if as_json:
        print_json(result)
    else:
        for name, value in result.items():
            click.echo(f"{name:<16} {value}")


def main() -> None:
    """Run `scripts/bench`."""
    run(cli, "bench")


if __name__ == "__main__":
    main()
