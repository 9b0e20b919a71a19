# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Every parser of foreign bytes, and what it promises: `scripts/fuzz` and the tests beside this file feed them.

It stands with the tests because it looks into both worlds and every party, as nothing else may.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import protocol
import wallet
from lab.fuzz_child import Target
from protocol import issuing
from protocol.apdu import MAX_NE, Command, Response
from protocol.commands import DEFAULT_NAME, Ins, select
from protocol.fci import ApplicationFci, DirectoryEntry, encode_directory
from protocol.status import StatusWord
from protocol.transcript import Record
from protocol.transport.base import card_historical, contactless_atr
from protocol.transport.isodep import Ats, Block
from protocol.wire import Wire
from tests.fuzz import conversations as talk
from tests.fuzz import cryptography_and_files as worlds
from tests.fuzz import key_cards
from tests.fuzz import key_channels as keys
from tests.fuzz import messages as say
from tests.fuzz.cutting import join
from wallet.environment.message import Kind, Message

_VECTORS = json.loads((Path(__file__).parents[1] / "protocol" / "vectors.json").read_text("utf-8"))
_OK = StatusWord.OK.to_bytes(2, "big")
_MORE = b"\x61\x08"

_SELECT = select(DEFAULT_NAME)
_FCI = ApplicationFci(DEFAULT_NAME, (1,), (1,)).encode()
_DIRECTORY = encode_directory((DirectoryEntry(DEFAULT_NAME, "TAPLAB", 1), DirectoryEntry(b"other", "", 0)))
_ATR = contactless_atr(card_historical(extended=True))
_LONG = Command(0x80, Ins.GET_VIRTUAL_CARD, 1, 1, bytes(300), MAX_NE)


def _vectors(kind: type[Wire]) -> tuple[bytes, ...]:
    name = f"{kind.__module__.removeprefix('protocol.')}.{kind.__name__}"
    return tuple(bytes.fromhex(vector["hex"]) for vector in _VECTORS.get(name, ())) + _SEEDS_OF_OUR_OWN.get(name, ())


def _first(name: str) -> bytes:
    return bytes.fromhex(_VECTORS[name][0]["hex"])


_number, _certificate = _first("messages.CardPlaintext")[:8], _first("certificate.CredentialCertificate")
_SEEDS_OF_OUR_OWN = {"wallet.tee.state.Credential": (bytes(32) + _number + bytes(2) + _certificate,)}
"""Of structures that are in no vectors, and hold what is not found by chance."""


def wire_classes() -> Iterator[type[Wire]]:
    """Yield every message that is described in the language and in the wallet, new ones included."""
    for package in (protocol, wallet):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if found.name.endswith("__main__"):
                continue
            module = importlib.import_module(found.name)
            for name, kind in vars(module).items():
                is_own = isinstance(kind, type) and issubclass(kind, Wire) and kind.__module__ == module.__name__
                if is_own and kind is not Wire and not name.startswith("_"):
                    yield kind


def _messages() -> Iterator[Target]:
    for kind in wire_classes():
        about = (kind.__doc__ or "").splitlines()[0]
        yield Target(f"{kind.__module__.rpartition('.')[2]}.{kind.__name__}", about, say.wire(kind), _vectors(kind))


def _issuer_message() -> Target:
    seeds = tuple(bytes([code]) + vector for code, kind in issuing._KINDS.items() for vector in _vectors(kind))
    check = say.strict(issuing.decode_message, issuing.encode_message)
    return Target("issuing", "what wallets, terminals and the issuer say: kind ‖ body", check, seeds)


def _apdus() -> Iterator[Target]:
    commands = tuple(
        one.encode() for one in (_SELECT, _LONG, Command(0x80, 0x52, 0, 0, bytes(30)), Command(0, 1, 2, 3))
    )
    yield Target("apdu.Command", "command APDU, short and extended", say.check_command, commands)
    yield Target("apdu.Response", "response APDU", say.strict(Response.decode), (_FCI + _OK, _MORE))
    yield Target("tlv", "BER-TLV, one template level", say.check_tlv, (_FCI, _DIRECTORY, _FCI + _DIRECTORY))
    yield Target("fci", "answer to SELECT of our application", say.lenient(ApplicationFci.decode), (_FCI,))
    yield Target("directory", "answer to SELECT of 2PAY.SYS.DDF01", say.check_directory, (_DIRECTORY,))
    said = Record.of_command(_SELECT).encode() + Record.of_response(Response(_FCI, StatusWord.OK)).encode()
    yield Target("transcript", "what was exchanged, as the TEE is shown it", say.check_transcript, (said, said + said))
    shown = (
        join(_LONG.with_data(_first("messages.GetVirtualCard")).encode(), _first("messages.VirtualCard") + _OK),
        join(Command(0x80, Ins.RELAY_CHECK, 0, 0, bytes(8), 256).encode(), bytes(8) + _OK),
        join(Command(0x80, Ins.DEBIT, 0, 0, bytes(30), 256).encode(), bytes(81) + _OK),
        join(Command(0x80, Ins.CONFIRM, 0, 0, bytes(16), 256).encode(), bytes(32) + _OK),
    )
    seeds = (*shown, join(_SELECT.encode(), _FCI + _OK), join(_LONG.encode()), join(b"", _OK))
    yield Target("describe", "an APDU and its answer, in words for a trace", say.check_description, seeds)


def _links() -> Iterator[Target]:
    ats = Ats(historical=card_historical(extended=True)).encode()
    yield Target("isodep.Ats", "answer to select, ISO 14443-4", say.check_ats, (ats, b"\x01", b"\x02\x70"))
    blocks = (b"\x02abc", b"\x13", b"\xa2", b"\xb3", b"\xc2", b"\xf2\x01")
    yield Target("isodep.Block", "block of ISO 14443-4", say.strict(Block.decode), blocks)
    yield Target(
        "atr", "answer to reset, its historical bytes", say.check_atr, (_ATR, b"\x3b\x00", b"\x3b\xf0\x11\x80\x01")
    )
    card = b"\0" + join(b"\x02ab", b"\xa3", b"\x12cd", b"\x03ef", b"\xf2\x01", b"", b"\xb2", b"\xb3", b"\xc2")
    yield Target("isodep.card", "the card's half, fed frames", talk.check_card_half, (card, b"\x80" + card[1:]))
    answers = join(b"\x02\x90\x00", b"\x12ab", b"\x03cd", b"\xa2", b"\xa3", b"\xf2\x01", b"", b"\xc2")
    reader = tuple(first + answers for first in (b"\0\5", b"\1\0", b"\2\1"))
    yield Target("isodep.reader", "the reader's half, fed frames", talk.check_reader_half, reader)
    chained = (
        Command(0x90, 0x50, 0, 8, bytes(200)),
        Command(0x80, 0x50, 0, 8, bytes(9), 4),
        Command(0, 0xC0, 0, 0, b"", 4),
    )
    commands = (join(*(one.encode() for one in chained)), join(_SELECT.encode()), join(_LONG.encode()))
    yield Target("chaining.card", "the card's chaining, fed commands", talk.check_card_chaining, commands, 320)
    pieces = join(_OK, _OK, bytes(8) + _MORE, bytes(8) + _OK, b"\x6c\x04")
    sent = tuple(first + pieces for first in (b"\0\5", b"\2\0", b"\x80\5", b"\x41\xff"))
    yield Target("chaining.terminal", "the terminal's chaining, fed answers", talk.check_terminal_chaining, sent, 320)
    file = bytes.fromhex("000F2000F000F00406E104010000009000")
    ndef = (_FCI + _OK, *[b"\x6a\x82"] * 6, _DIRECTORY + _OK, _OK, _OK, file, _OK, b"\0\3" + _OK, _OK, b"abc" + _OK)
    names = (join(_ATR, *ndef), join(_ATR, _OK, *ndef[2:]))
    yield Target("probe", "a card that tap-pos probe looks at: names, directory, NDEF file", talk.check_probe, names)


def _worlds() -> Iterator[Target]:
    message = Message(Kind.INVOKE_COMMAND, 2, 1, 10, length=8).encode()
    yield Target("message", "Message between the worlds", say.strict(Message.decode), (message,), 64)
    yield Target("storage", "sealed storage, put back by the other world", worlds.check_log, worlds.GOOD_LOGS)
    yield Target("freshness", "freshness counter, put back", worlds.check_counter, worlds.GOOD_COUNTERS, 128)
    yield Target("signing", "foreign point and signature", worlds.check_signature, (worlds.SIGNED,), 128)
    yield Target("envelope", "foreign X25519 key and HPKE output", worlds.check_envelope, (worlds.RECIPIENT,), 256)


def _keys() -> Iterator[Target]:
    certificates = "certificate of a Key's channel, X.509 or 7F21"
    yield Target("key.certificate", certificates, keys.check_certificate, keys.CERTIFICATES)
    yield Target("key.commands", "a Key, fed commands of a stranger", keys.check_key, keys.COMMANDS, 2048)
    yield Target(
        "key.card", "a Key's card, fed commands and presses", key_cards.check_card, key_cards.CONVERSATIONS, 2048
    )
    yield Target(
        "key.answers", "a trusted world, fed answers of a stranger", keys.check_trusted_world, keys.ANSWERS, 2048
    )


TARGETS: dict[str, Target] = {
    target.name: target for target in (*_apdus(), *_links(), *_worlds(), *_keys(), _issuer_message(), *_messages())
}
