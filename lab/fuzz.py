# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""`scripts/fuzz`: coverage-guided hostile bytes for every parser, each in a process of its own that is watched.

What a target is stands in lab/fuzz_child.py, which ones there are in tests/fuzz/targets.py.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import select
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from console.cli import run
from console.exit_codes import ExitCode
from console.ui import print_json, progress_bar
from lab import fuzz_corpus
from lab.fuzz_child import CurrentInput, Order, Target, Told, load
from protocol.errors import MissingOnMachineError, TapLabError, UsageError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

ROOT = Path(__file__).parents[1]
TABLE = "tests.fuzz.targets"
CORPUS = ROOT / "tests" / "fuzz" / "corpus"
_START_SECONDS = 120.0
_CHUNK = 1 << 16

Tick = Callable[[Told], None]


@dataclass(frozen=True, slots=True)
class Limits:
    """When a target has had enough (0 is never), the number that everything random comes from, and what is a hang."""

    runs: int
    seconds: float
    seed: int
    patience: float


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that a parser must not do, and the input in hexadecimal that makes it do so."""

    what: str
    input: str


@dataclass(frozen=True, slots=True)
class Report:
    """What came of one target. Memory is that of the process that fed it, in MiB, after the first inputs and at the end."""

    target: str
    inputs: int
    seconds: float
    corpus: int
    rss_before: float
    rss_after: float
    found: tuple[Finding, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the report for programs."""
        return {**asdict(self), "inputs_per_second": round(self.inputs / self.seconds) if self.seconds else 0}

    def __str__(self) -> str:
        speed = f"{self.inputs:>9} inputs {self.seconds:8.1f} s {self.as_json()['inputs_per_second']:>7}/s"
        memory = f"{self.rss_before:6.1f} > {self.rss_after:6.1f} MiB"
        end = f"{len(self.found)} found" if self.found else "nothing found"
        return f"{self.target:<32} {speed}  corpus {self.corpus:>4}  {memory}  {end}"


class WatchedChild:
    """A process that feeds one target, and what it has told so far."""

    def __init__(self, order: Order, longest: int, patience: float) -> None:
        """Start it; it hangs when it says nothing for `patience` seconds."""
        self._patience = patience
        self.told = Told()
        self._is_started = False
        self._current = CurrentInput(Path(order.current), longest)
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - open for as long as the process lives
        command = [sys.executable, "-m", "lab.fuzz_child", json.dumps(asdict(order))]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._log
        )

    def watch(self, tick: Tick) -> list[Finding]:
        """Wait until it has done what it should, dies or hangs, and return what it found."""
        rest = b""
        while chunk := self._read():
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                self.told, self._is_started = Told(**json.loads(line)), True
                tick(self.told)
        found = [Finding(what, data) for what, data in self.told.found.items()]
        if not self.told.is_last:
            found.append(self._end_of_a_bad_child())
        return found

    def _read(self) -> bytes:
        """Return what it said next; nothing when it ended, or said nothing for too long."""
        stdout = self._process.stdout
        assert stdout is not None  # noqa: S101 - it was asked for
        limit = self._patience if self._is_started else _START_SECONDS
        ready, _, _ = select.select([stdout], [], [], limit)
        return os.read(stdout.fileno(), _CHUNK) if ready else b""

    def _end_of_a_bad_child(self) -> Finding:
        hangs = self._is_running()
        self._process.kill()
        code = self._process.wait()
        if not self._is_started:
            raise TapLabError(f"the fuzzer did not start: {self._last_words()}")
        what = f"hangs for {self._patience:g} s" if hangs else f"the process ended with {code}"
        return Finding(what, self._current.get().hex())

    def _is_running(self) -> bool:
        try:
            self._process.wait(1.0)
        except subprocess.TimeoutExpired:
            return True
        return False

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._log.close()
        self._current.close()


@dataclass(frozen=True, slots=True)
class Fuzzer:
    """Fuzzes targets of a table, from the corpus in a folder and, when told so, into it."""

    table: str
    corpus: Path
    limits: Limits
    keep: bool

    def fuzz(self, target: Target, tick: Tick) -> Report:
        """Fuzz one target and write down what broke it."""
        with tempfile.TemporaryDirectory(prefix="taplab-fuzz-") as name:
            inputs, current = Path(name) / "inputs", Path(name) / "current"
            inputs.mkdir()
            seeds = [*target.seeds, *fuzz_corpus.read(fuzz_corpus.kept_file(self.corpus, target.name))]
            for number, data in enumerate(seeds):
                (inputs / f"seed{number}").write_bytes(data)
            limits = self.limits
            order = Order(self.table, target.name, str(inputs), str(current), limits.runs, limits.seconds, limits.seed)
            child = WatchedChild(order, target.longest, limits.patience)
            try:
                found = child.watch(tick)
            finally:
                child.close()
            self._save(target, found)
            size = self._keep(target, inputs, found) if self.keep else len(seeds)
        told = child.told
        return Report(
            target.name, told.inputs, round(told.seconds, 1), size, told.rss_before, told.rss_after, tuple(found)
        )

    def _save(self, target: Target, found: Sequence[Finding]) -> None:
        file = fuzz_corpus.found_file(self.corpus, target.name)
        if found:
            self.corpus.mkdir(parents=True, exist_ok=True)
            fuzz_corpus.write(file, [*fuzz_corpus.read(file), *(bytes.fromhex(finding.input) for finding in found)])

    def _keep(self, target: Target, inputs: Path, found: Sequence[Finding]) -> int:
        """Make the kept corpus anew of everything that was tried, and return how large it is with the seeds."""
        self.corpus.mkdir(parents=True, exist_ok=True)
        broken = {bytes.fromhex(finding.input) for finding in found}
        candidates = {path.read_bytes()[: target.longest] for path in inputs.iterdir()} - broken
        kept = fuzz_corpus.minimised(target.check, target.seeds, candidates)
        fuzz_corpus.write(fuzz_corpus.kept_file(self.corpus, target.name), kept)
        return len(target.seeds) + len(kept)


@click.group(
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "allow_interspersed_args": True},
    subcommand_metavar="",
)
@click.argument("targets", metavar="[TARGET]...", nargs=-1)
@click.option("--runs", default=20_000, show_default=True, type=click.IntRange(0), help="Inputs a target; 0: no limit.")
@click.option("--seconds", default=0.0, show_default=True, type=click.FloatRange(0), help="Time a target; 0: no limit.")
@click.option("--seed", type=click.IntRange(1, 2**31), help="Makes a run repeatable.  [default: another each time]")
@click.option(
    "--patience", default=10.0, show_default=True, type=click.FloatRange(0.5), help="Seconds that are a hang."
)
@click.option("--keep", is_flag=True, help="Make the kept corpus anew of all that was tried; then look at `git diff`.")
@click.option("--list", "only_list", is_flag=True, help="Show the targets and the size of their corpus.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output, for programs.")
@click.option("--table", default=TABLE, show_default=True, help="Module that lists the targets.")
@click.option("--corpus", default=CORPUS, type=click.Path(path_type=Path), help="Folder of the kept corpus.")
def cli(
    targets: tuple[str, ...],
    runs: int,
    seconds: float,
    seed: int | None,
    patience: float,
    keep: bool,
    only_list: bool,
    as_json: bool,
    table: str,
    corpus: Path,
) -> int:
    """Feed hostile bytes to parsers, guided by the code that they reach, and see that they keep what they promise.

    Without a TARGET it feeds all of them, one after the other; `messages.` stands for all that begin so. A parser
    returns a value that encodes to exactly its input or raises the error that it documents; anything else, a hang and
    a death of the process are found, shown in hexadecimal, and saved beside the corpus, where a test keeps failing
    until the parser is mended. It then moves into the corpus with --keep. Exits with 1 when something was found.

    \b
      scripts/fuzz --list
      scripts/fuzz messages.Debit --runs 1000000
      scripts/fuzz isodep. --seconds 60 --keep
    """
    chosen = _choose(_load(table), targets)
    if only_list:
        for target in chosen:
            click.echo(f"{target.name:<32} {len(fuzz_corpus.kept(corpus, target.name)):>4}  {target.about}")
        return ExitCode.OK
    if not runs and not seconds:
        raise UsageError("without --runs and --seconds it would never end; give one of them")
    if importlib.util.find_spec("atheris") is None:
        raise MissingOnMachineError("atheris cannot be used; install it with `pip install -e '.[dev]'`")
    limits = Limits(runs, seconds, seed or random.randint(1, 2**31), patience)
    reports = _fuzz_all(Fuzzer(table, corpus, limits, keep), chosen, None if as_json else click.echo)
    if as_json:
        print_json({"seed": limits.seed, "targets": [report.as_json() for report in reports]})
    return ExitCode.FAILED if any(report.found for report in reports) else ExitCode.OK


def _load(table: str) -> dict[str, Target]:
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    try:
        return load(table)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{table} cannot be loaded ({error}); scripts/fuzz works in a checkout of the project"
        ) from None


def _choose(known: dict[str, Target], names: tuple[str, ...]) -> list[Target]:
    chosen: dict[str, Target] = {}
    for name in names or ("",):
        fitting = {one: known[one] for one in known if one == name or (name[-1:] in ("", ".") and one.startswith(name))}
        if not fitting:
            raise UsageError(f"there is no target {name!r}; `scripts/fuzz --list` shows them")
        chosen |= fitting
    return list(chosen.values())


def _fuzz_all(fuzzer: Fuzzer, targets: list[Target], say: Callable[[str], None] | None) -> list[Report]:
    limits, reports = fuzzer.limits, []
    with progress_bar() as progress:
        for number, target in enumerate(targets, 1):
            total = limits.runs or limits.seconds
            task = progress.add_task(f"{target.name} ({number} of {len(targets)})", total=total)
            report = fuzzer.fuzz(target, partial(_show, progress, task, limits))
            progress.remove_task(task)
            reports.append(report)
            if say is not None:
                say(str(report))
                for finding in report.found:
                    say(f"  {finding.what}: {finding.input}")
    return reports


def _show(progress: Progress, task: TaskID, limits: Limits, told: Told) -> None:
    progress.update(task, completed=told.inputs if limits.runs else told.seconds)


def main() -> None:
    """Run `scripts/fuzz`."""
    run(cli, "fuzz")


if __name__ == "__main__":
    main()
