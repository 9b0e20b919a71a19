# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Every parser keeps its promise for the kept corpus and a short burst, and the fuzzer finds what does not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lab import fuzz_corpus
from lab.fuzz import CORPUS, ROOT
from lab.fuzz_child import Target
from protocol import issuing
from tests.fuzz import burst as bursts
from tests.fuzz import planted
from tests.fuzz.burst import FoundError, attempt, burst
from tests.fuzz.targets import TARGETS, wire_classes

_SEED = 20
_BURST = 1000
every_target = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)


@every_target
def test_the_kept_corpus_keeps_every_promise(target: Target) -> None:
    for data in (b"", *target.seeds, *fuzz_corpus.kept(CORPUS, target.name)):
        attempt(target, data)


@every_target
def test_a_short_burst_keeps_every_promise(target: Target) -> None:
    kept = fuzz_corpus.kept(CORPUS, target.name)
    assert burst(target, kept, _SEED, _BURST) > 1 or not (kept or target.seeds)


def test_there_is_a_target_for_every_message() -> None:
    messages = {f"{kind.__module__.rpartition('.')[2]}.{kind.__name__}" for kind in wire_classes()}
    assert {"messages.Debit", "certificate.TerminalCertificate", "contract.CardRequest"} <= messages
    assert messages <= set(TARGETS)
    assert set(issuing._KINDS.values()) <= set(wire_classes())


def test_the_corpus_is_small_in_order_and_of_targets_that_there_are() -> None:
    files = list(CORPUS.glob("*.hex"))
    assert {file.name.removesuffix(".hex").removesuffix(".found") for file in files} <= set(TARGETS)
    assert sum(file.stat().st_size for file in files) < 1 << 20
    for file in files:
        inputs = fuzz_corpus.read(file)
        assert inputs == sorted(set(inputs), key=lambda data: (len(data), data))
        assert len(inputs) <= fuzz_corpus.AT_MOST


def test_a_corpus_keeps_what_reaches_something_new_and_nothing_else() -> None:
    target = TARGETS["isodep.Block"]
    same = [b"\x02", b"\x02abc", b"\x03" * 9]
    kept = fuzz_corpus.minimised(target.check, (), [*same, b"\xc2", b"\xc2"])
    assert kept == [b"\x02", b"\xc2"]
    assert fuzz_corpus.minimised(target.check, (b"\x02", b"\xc2"), same) == []


def test_a_corpus_is_read_as_it_was_written(tmp_path: Path) -> None:
    file = fuzz_corpus.kept_file(tmp_path, "any")
    fuzz_corpus.write(file, [b"bb", b"c", b"", b"bb"])
    assert (file.read_text(), fuzz_corpus.read(file)) == ("63\n6262\n", [b"c", b"bb"])
    fuzz_corpus.write(file, [b""])
    assert fuzz_corpus.kept(tmp_path, "any") == []


# --- the same for the same seed, and able to fail


def test_a_burst_is_the_same_for_the_same_seed() -> None:
    def inputs(seed: int) -> list[bytes]:
        tried: list[bytes] = []

        def note(data: bytes) -> str:
            tried.append(data)
            return ""

        burst(Target("any", "", note, (b"abc" * 9,)), [], seed, 200)
        return tried

    assert inputs(1) == inputs(1) != inputs(2)
    assert len(set(inputs(1))) > 100


def test_a_burst_finds_a_planted_bug() -> None:
    with pytest.raises(FoundError, match="reads beyond: IndexError by 02"):
        burst(planted.TARGETS["reads beyond"], [], _SEED, _BURST)


def test_a_burst_finds_a_planted_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bursts, "HANG_SECONDS", 0.2)
    with pytest.raises(FoundError, match="never ends: TimeoutError by 02"):
        burst(planted.TARGETS["never ends"], [], _SEED, _BURST)


# --- scripts/fuzz


def _fuzz(*arguments: str) -> tuple[int, dict[str, Any]]:
    line = [sys.executable, "-m", "lab.fuzz", *arguments, "--json"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=100)
    return done.returncode, json.loads(done.stdout)


def test_scripts_fuzz_feeds_a_parser_and_keeps_what_reached_something_new(tmp_path: Path) -> None:
    code, result = _fuzz("message", "--runs", "3000", "--seed", "7", "--corpus", str(tmp_path), "--keep")
    (report,) = result["targets"]
    assert (code, result["seed"], report["target"], report["found"]) == (0, 7, "message", [])
    assert report["inputs"] == 3000
    assert report["rss_after"] >= report["rss_before"] > 0
    kept = fuzz_corpus.kept(tmp_path, "message")
    assert report["corpus"] == len(kept) + len(TARGETS["message"].seeds)
    assert any(len(data) == 24 for data in kept)


@pytest.mark.parametrize(
    ("target", "what"),
    [
        ("reads beyond", "IndexError in planted.py"),
        ("never ends", "hangs for 1 s"),
        ("dies", "the process ended with 3"),
    ],
)
def test_scripts_fuzz_finds_a_planted_bug_and_saves_what_shows_it(tmp_path: Path, target: str, what: str) -> None:
    options = ("--table", "tests.fuzz.planted", "--corpus", str(tmp_path), "--seed", "7", "--patience", "1")
    code, result = _fuzz(target, "--runs", "20000", *options)
    (found,) = result["targets"][0]["found"]
    assert code == 1
    assert found["what"].startswith(what)
    assert fuzz_corpus.read(fuzz_corpus.found_file(tmp_path, target)) == [bytes.fromhex(found["input"])]
    assert found["input"].startswith("02")


def test_scripts_fuzz_is_not_misled_by_what_a_parser_prints(tmp_path: Path) -> None:
    code, result = _fuzz("prints", "--runs", "500", "--table", "tests.fuzz.planted", "--corpus", str(tmp_path))
    assert (code, result["targets"][0]["inputs"]) == (0, 500)


@pytest.mark.parametrize("arguments", [("no such target",), ("message", "--runs", "0"), ("--table", "no.such.module")])
def test_scripts_fuzz_says_what_makes_no_sense(arguments: tuple[str, ...]) -> None:
    code, result = _fuzz(*arguments)
    assert (code, result["exit_code"]) == (2, 2)
