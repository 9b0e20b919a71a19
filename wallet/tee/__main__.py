# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The TEE process: reads its root key, opens its storage, uses everything once, locks itself down, and serves."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from console.files import root_key, take_lock
from protocol.errors import TapLabError
from protocol.labels import Label, labelled
from protocol.secret import Secret
from wallet.environment.lifeline import end_with_the_phone
from wallet.environment.lockdown import Lockdown, lock_down
from wallet.environment.shared_memory import SharedMemory
from wallet.tee import warm_up
from wallet.tee.contract import Origin, TeeError, TeeResult
from wallet.tee.freshness import FreshnessCounter
from wallet.tee.internal_api import InternalApi, as_tee_error, refuse_start
from wallet.tee.payment_ta import PaymentApplication
from wallet.tee.pinentry import Terminal
from wallet.tee.state import Limits
from wallet.tee.storage import FILE_NAME, SealedStorage
from wallet.tee.trusted_ui import TrustedUi, open_ui

ROOT_KEY_FILE = "root.key"
LOCK_FILE = "lock"


@dataclass(frozen=True, slots=True)
class Arguments:
    """The command line of this process."""

    device: Path
    storage: Path
    channel: int
    memory: int
    trusted_ui: str
    require_sandbox: bool
    reads: int | None
    tty: str
    term: str
    at_once: bool


def _parse() -> Arguments:
    parser = argparse.ArgumentParser(
        prog="python -m wallet.tee",
        description="The trusted world of a TapLab wallet. It is started by tap-wallet, never by hand.",
    )
    parser.add_argument("--device", type=Path, required=True, help="folder of the device root key")
    parser.add_argument("--storage", type=Path, required=True, help="folder of the sealed storage")
    parser.add_argument("--channel", type=int, required=True, help="descriptor of the Message socket")
    parser.add_argument("--memory", type=int, required=True, help="descriptor of the shared memory")
    parser.add_argument("--trusted-ui", default="", help="pinentry[:PROGRAM], scripted:FILE, or nothing")
    parser.add_argument("--require-sandbox", action="store_true", help="refuse to serve without every protection")
    parser.add_argument("--reads", type=int, help="for a new wallet: cards that a terminal may see without a payment")
    parser.add_argument("--tty", default="", help="terminal that the trusted UI appears on")
    parser.add_argument("--term", default="dumb", help="type of that terminal")
    parser.add_argument("--at-once", action="store_true", help="ask the user within a tap, while the terminal waits")
    return Arguments(**vars(parser.parse_args()))


def main() -> None:
    """Serve the other world until it closes."""
    arguments = _parse()
    lifeline = end_with_the_phone()
    memory = SharedMemory(arguments.memory)
    try:
        api = _prepare(arguments, memory, lifeline)
    except TapLabError as error:
        refuse_start(arguments.channel, memory, as_tee_error(error))
        return
    except OSError as error:
        refuse_start(
            arguments.channel, memory, TeeError(TeeResult.GENERIC, Origin.TEE, f"the TEE cannot start: {error}")
        )
        return
    api.serve()


def _prepare(arguments: Arguments, memory: SharedMemory, lifeline: tuple[int, ...]) -> InternalApi:
    storage_folder = arguments.storage
    sentence = f"another wallet process is using {storage_folder.parent}; stop it first, or use another --home"
    lock = take_lock(storage_folder / LOCK_FILE, sentence)
    root = root_key(arguments.device / ROOT_KEY_FILE, storage_folder / FILE_NAME, "the storage")
    ui: TrustedUi = open_ui(arguments.trusted_ui, Terminal(arguments.tty, arguments.term) if arguments.tty else None)
    counter = FreshnessCounter(storage_folder, _derive(root, Label.COUNTER_KEY))
    storage = SealedStorage(storage_folder, _derive(root, Label.STORAGE_KEY), counter)
    limits = None if arguments.reads is None else Limits(arguments.reads)
    warm_up.use_everything_once()
    kept = (arguments.channel, lock, *lifeline, *counter.descriptors, *storage.descriptors, *ui.descriptors)
    lockdown = lock_down(storage_folder, kept)
    _require(lockdown, required=arguments.require_sandbox)
    application = PaymentApplication(storage, ui, lockdown, limits, at_once=arguments.at_once)
    return InternalApi(arguments.channel, memory, application)


def _require(lockdown: Lockdown, *, required: bool) -> None:
    if required and not lockdown.complete:
        raise TapLabError(f"the TEE refuses to start without its sandbox: {'; '.join(lockdown.missing)}")


def _derive(root: Secret, label: Label) -> Secret:
    return Secret(HKDFExpand(SHA256(), 32, labelled(label)).derive(root))


if __name__ == "__main__":
    main()
