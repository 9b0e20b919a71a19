# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""`scripts/torture`: see `scripts/torture --help`."""

from __future__ import annotations

import secrets
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from console.cli import run
from console.exit_codes import ExitCode
from console.ui import print_json, progress_bar
from lab.torture import disks, endurance, key, kills, sides, tears
from lab.torture.arena import Arena, Tally
from lab.torture.children import Children
from lab.torture.endurance import GROWS_AT_MOST_MIB, SLOWER_AT_MOST, Endurance

GROUPS = ("tears", "kills", "disks", "key", "sides", "endurance")


@dataclass(frozen=True, slots=True)
class Amounts:
    """How much torture there is."""

    stride: int
    kills: int
    disks: int
    key: int
    rounds: int
    taps: int

    def cases(self, groups: tuple[str, ...]) -> int:
        """Return about how many cases these groups have."""
        of = {"tears": tears.count(self.stride), "kills": self.kills, "disks": 2 * self.disks, "key": 2 * self.key,
              "sides": 4 * self.rounds, "endurance": self.taps}  # fmt: skip
        return sum(of[group] for group in groups)


QUICK = Amounts(stride=37, kills=18, disks=8, key=4, rounds=1, taps=200)
FULL = Amounts(stride=1, kills=510, disks=60, key=160, rounds=5, taps=10_000)


@dataclass(frozen=True, slots=True)
class Report:
    """What came of it."""

    tally: Tally
    endurance: Endurance | None
    seconds: float
    seed: int
    left_out: str

    def as_json(self) -> dict[str, Any]:
        """Return it for programs."""
        return {
            **asdict(self.tally),
            "seed": self.seed,
            "seconds": round(self.seconds, 1),
            "endurance": self.endurance.as_json() if self.endurance else None,
            "left_out": self.left_out or None,
        }

    @property
    def is_clean(self) -> bool:
        """Whether nothing was lost, made, charged twice, bricked or left unsettled."""
        return self.tally.is_clean


def torture(groups: tuple[str, ...], amounts: Amounts, seed: int, tick: Callable[[], None]) -> Report:
    """Run these groups, each in a laboratory of its own, and count what was found."""
    folder = Path(tempfile.mkdtemp(prefix="taplab-torture-"))
    started = time.monotonic()
    tally, measured, left_out = Tally(), None, ""
    try:
        if "tears" in groups:
            with Arena(folder / "tears", seed, tick) as arena:
                tears.tear(arena, stride=amounts.stride)
                tally.add(arena.tally)
        if "kills" in groups or "disks" in groups:
            tally.add(_with_children(folder, groups, amounts, seed, tick))
        if "disks" in groups:
            filled = disks.fill(folder / "small", seed, amounts.disks)
            left_out = "full disks: this user may not mount a small file system" if filled is None else ""
            tally.add(filled or Tally())
        if "key" in groups:
            tally.add(key.trouble(folder / "key", seed, amounts.key, tick))
        if "sides" in groups:
            sides.lose_sides(folder, tally, amounts.rounds)
        if "endurance" in groups:
            with Arena(folder / "endurance", seed, tick) as arena:
                measured = endurance.endure(arena, amounts.taps)
                tally.add(arena.tally)
    finally:
        shutil.rmtree(folder)
    return Report(tally, measured, time.monotonic() - started, seed, left_out)


def _with_children(
    folder: Path, groups: tuple[str, ...], amounts: Amounts, seed: int, tick: Callable[[], None]
) -> Tally:
    with Arena(folder / "kills", seed, tick) as arena:
        children = Children(arena)
        if "kills" in groups:
            kills.kill(arena, children, amounts.kills)
        if "disks" in groups:
            disks.trouble(arena, children, amounts.disks)
        return arena.tally


def _as_text(report: Report) -> str:
    counted = asdict(report.tally)
    findings = counted.pop("findings")
    lines = [f"{name.replace('_', ' '):<18} {value}" for name, value in counted.items()]
    lines.append(f"{'seed':<18} {report.seed}")
    if report.endurance is not None:
        shown = report.endurance
        lines.append(f"{shown.taps} taps in a row: the last tenth took {shown.ratio} times as long as the first")
        if shown.ratio > SLOWER_AT_MOST or shown.last.own_mib + shown.last.tee_mib > (
            shown.first.own_mib + shown.first.tee_mib + GROWS_AT_MOST_MIB
        ):
            lines.append(f"that is slower or larger than it should be: {shown.as_json()}")
    lines += [f"left out: {report.left_out}"] if report.left_out else []
    return "\n".join([*lines, *(f"FOUND  {finding}" for finding in findings)])


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--quick", is_flag=True, help="A sample of each group, under 90 seconds.")
@click.option("--only", "groups", multiple=True, type=click.Choice(GROUPS), help="Only this group; may be repeated.")
@click.option("--seed", type=int, help="What to choose cases by; a run with the same seed chooses the same ones.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output, for programs.")
def cli(quick: bool, groups: tuple[str, ...], seed: int | None, as_json: bool) -> int:
    """Tear taps, kill processes, fill disks, lose whole sides; then tap again and count the money.

    \b
      tears      the field goes at every byte of every frame; frames lost, late, doubled, damaged
      kills      terminal, wallet and trusted world killed at every step
      disks      full, not writable, not syncing
      key        a Trusted Key gone or killed while it is asked or signs; taps torn that it signed for
      sides      one side gone for good: the issuer settles
      endurance  ten thousand taps in a row

    Nothing may be lost, made, charged twice, bricked or left unsettled. Exit code 0 says so, 1 that something was found.
    """
    disks.keep_quiet()
    chosen = groups or GROUPS
    amounts = QUICK if quick else FULL
    seed = secrets.randbelow(1 << 32) if seed is None else seed
    with progress_bar() as progress:
        task = progress.add_task("torture", total=amounts.cases(chosen))
        report = torture(chosen, amounts, seed, lambda: progress.advance(task))
    if as_json:
        print_json(report.as_json())
    else:
        click.echo(_as_text(report))
    return ExitCode.OK if report.is_clean else ExitCode.FAILED


def main() -> None:
    """Run `scripts/torture`."""
    run(cli, "torture")


if __name__ == "__main__":
    main()
