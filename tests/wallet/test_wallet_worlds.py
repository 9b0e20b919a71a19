# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The three parties of the design and what passes between them, watched at the border while a wallet lives its life."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from issuer.register import Register
from lab import fixtures
from lab.fixtures import Laboratory, Setup
from pos.verifier import Trust, verify
from protocol import envelope, signing
from protocol.apdu import Command, Response
from protocol.card_number import CardNumber
from protocol.certificate import Authority, CredentialCertificate, Usage, issue, whole_months
from protocol.commands import Ins
from protocol.errors import Check, VerificationError
from protocol.labels import Label, labelled
from protocol.messages import CardPlaintext, GetVirtualCard, VirtualCard
from protocol.money import Amount
from protocol.secret import Secret
from protocol.signing import PrivateKey
from protocol.transcript import Record, digests
from protocol.transport.base import NO_CARD_TIMEOUT, Activation, CardLink
from protocol.transport.issuer import IssuerLink
from protocol.wire import Wire
from wallet import phone as phone_module
from wallet.account import Account
from wallet.environment import message
from wallet.environment.launcher import ANSWER_SECONDS
from wallet.environment.message import MESSAGE_LENGTH, Kind, Message
from wallet.environment.shared_memory import REGION
from wallet.phone import PhoneOptions
from wallet.tee import encryption_module, signature_module
from wallet.tee.client import TeeSession
from wallet.tee.contract import Agreed, CommandId, Dialogue, KeyAnswer, NewLimits, Report, TeeError
from wallet.tee.pin import PIN, Pin
from wallet.tee.state import ANCHORS, CREDENTIAL, DEVICE, PHRASE, PURSE, Credential, Device
from wallet.tee.storage import SealedStorage

_TODAY = date(2026, 11, 22)
_PIN, _PHRASE = "246813579024", "blue heron at noon"


@dataclass(slots=True)
class Border:
    """All that crossed between the worlds: commands, what they carried and brought, the memory after each of them."""

    commands: list[CommandId] = field(default_factory=list)
    payloads: list[bytes] = field(default_factory=list)
    memory: list[bytes] = field(default_factory=list)
    messages: list[bytes] = field(default_factory=list)

    @property
    def everything(self) -> list[bytes]:
        """Every byte string that the client world got to see."""
        return [*self.payloads, *self.memory, *self.messages]


def _watched(border: Border) -> type[TeeSession]:
    """Return a client API that writes down what it sees; it changes nothing."""

    class WatchedSession(TeeSession):
        def invoke_command(
            self, command: CommandId, parameters: Wire | None = None, timeout: float = ANSWER_SECONDS
        ) -> bytes:
            border.commands.append(command)
            border.payloads.append(parameters.encode() if parameters else b"")
            answer = super().invoke_command(command, parameters, timeout)
            border.payloads.append(answer)
            if self._environment is not None:
                memory = self._environment._memory
                border.memory += [memory.read_request(REGION), memory.read_answer(REGION)]
            return answer

    return WatchedSession


@dataclass(slots=True)
class RecordingLink(CardLink):
    """Writes down each APDU and its answer."""

    link: CardLink
    said: list[tuple[Command, Response]] = field(default_factory=list)

    def activate(self, timeout: float = NO_CARD_TIMEOUT) -> Activation:
        return self.link.activate(timeout)

    def transceive(self, apdu: bytes) -> bytes:
        answer = self.link.transceive(apdu)
        self.said.append((Command.decode(apdu), Response.decode(answer)))
        return answer

    def deactivate(self) -> None:
        self.link.deactivate()

    def close(self) -> None:
        self.link.close()


@dataclass(slots=True)
class Life:
    """A wallet that was applied for, loaded, tapped, asked and given a list, and all that was seen of it."""

    laboratory: Laboratory
    border: Border
    said: list[tuple[Command, Response]]


def _live(laboratory: Laboratory) -> list[tuple[Command, Response]]:
    link = RecordingLink(laboratory.link)
    tee = laboratory.phone.tee
    with IssuerLink(laboratory.home.issuer_url) as issuer:
        Account(tee, issuer).sync()
    assert laboratory.terminal.charge(Amount.parse("12.50", "EUR"), link).approved
    _use_trusted_ui(laboratory)
    laboratory.charge("60.00")
    tee.invoke(CommandId.ASK_CONSENT, Dialogue)
    tee.invoke(CommandId.REPORT, Report)
    tee.invoke_command(CommandId.END_TAP)
    return link.said


def _use_trusted_ui(laboratory: Laboratory) -> None:
    """Set PIN, phrase and limits, and have the PIN unblocked."""
    tee = laboratory.phone.tee
    assert tee.invoke(CommandId.CHANGE_PIN, Agreed).done
    assert tee.invoke(CommandId.CHOOSE_PHRASE, Agreed).done
    assert Agreed.decode(tee.invoke_command(CommandId.CHANGE_LIMITS, NewLimits(50_00, 300_00, 9))).done
    for command in (
        CommandId.PAIR_KEY,
        CommandId.KEY_ANSWER,
        CommandId.FETCH_FROM_KEY,
        CommandId.MOVE_OUT,
        CommandId.MOVE_IN,
        CommandId.FORGET_KEY,
    ):
        with suppress(TeeError):  # there is no Key here: tests/trusted_key has wallets with one
            tee.invoke_command(command, KeyAnswer(1, b"") if command is CommandId.KEY_ANSWER else None)
    with closing(Register(laboratory.home.issuer)) as register:
        register.allow_unblocking(laboratory.phone.view().device.hex())
    with IssuerLink(laboratory.home.issuer_url) as issuer:
        assert Account(tee, issuer).unblock_pin().pin_tries == 3


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Life]:
    border = Border()
    script = tmp_path_factory.mktemp("surface") / "script"
    script.write_text("\n".join(f"type {one}" for one in (_PIN, _PIN, _PIN, _PHRASE, *4 * [_PIN], _PIN)))
    send = message.send

    def send_and_note(descriptor: int, one: Message) -> None:
        border.messages.append(one.encode())
        send(descriptor, one)

    with pytest.MonkeyPatch.context() as patch:
        watched = _watched(border)
        patch.setattr(fixtures, "TeeSession", watched)
        patch.setattr(phone_module, "TeeSession", watched)
        patch.setattr(message, "send", send_and_note)
        options = PhoneOptions(trusted_ui=f"scripted:{script}")
        with Laboratory(Setup(balance="500.00"), options=options) as laboratory:
            yield Life(laboratory, border, _live(laboratory))


# --- A1: three parties


@pytest.mark.requirement("A1")
def test_client_and_trusted_application_are_two_processes(life: Life) -> None:
    pid = life.laboratory.phone.tee.pid
    assert pid is not None
    assert pid != os.getpid()
    arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    assert arguments[1:4] == [b"-I", b"-m", b"wallet.tee"]


@pytest.mark.requirement("A1")
def test_the_client_process_never_loads_the_trusted_application() -> None:
    program = "import wallet.phone, wallet.cli, wallet.ui, json, sys; print(json.dumps(sorted(sys.modules)))"
    said = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, check=True, timeout=30)
    loaded = [name for name in json.loads(said.stdout) if name.startswith("wallet.tee")]
    assert loaded == ["wallet.tee", "wallet.tee.client", "wallet.tee.contract"]


@pytest.mark.requirement("A1")
def test_the_three_are_connected_pairwise(life: Life) -> None:
    """Client application to environment and environment to trusted application by Messages, the two by shared memory."""
    messages, memory = len(life.border.messages), len(life.border.memory)
    view = life.laboratory.phone.view()
    sent = {(one.kind, one.command) for one in map(Message.decode, life.border.messages[messages:])}
    assert sent == {(Kind.INVOKE_COMMAND, CommandId.SHOW)}
    assert any(one.startswith(view.encode()) for one in life.border.memory[memory:])
    shared = [line for line in Path("/proc/self/maps").read_text().splitlines() if "memfd:tee-shared-memory" in line]
    assert {line.split()[1] for line in shared} == {"rw-s"}


@pytest.mark.requirement("A1")
def test_core_data_is_sealed_in_the_trusted_world_and_nowhere_in_the_wallets_folder(
    life: Life, tmp_path: Path, open_storage: Callable[[Path, Path], SealedStorage]
) -> None:
    wallet = life.laboratory.home.wallet
    storage = open_storage(wallet, tmp_path)
    assert storage.get(PURSE) is not None
    secrets = _secrets(storage)
    assert secrets
    for file in (one for one in wallet.rglob("*") if one.is_file() and one.name != "root.key"):
        content = file.read_bytes()
        assert [name for name, secret in secrets.items() if secret in content] == []


# --- A2: encrypt, then sign


@pytest.mark.requirement("A2")
def test_the_signature_is_over_the_ciphertext(life: Life) -> None:
    position = next(index for index, (command, _) in enumerate(life.said) if command.ins == Ins.GET_VIRTUAL_CARD)
    command, answer = life.said[position]
    card = VirtualCard.decode(answer.data)
    prefix = b"".join(
        Record.of_command(one).encode() + Record.of_response(other).encode() for one, other in life.said[:position]
    )
    t2 = digests(prefix, command).t2
    key, certificate = card.certificate.public_key, card.certificate.encode()
    good = envelope.card_signature_input(t2, certificate, card.sealed)
    assert signing.is_valid(key, card.signature, good)  # without any key to decrypt with
    for at in range(len(card.sealed)):
        changed = card.sealed[:at] + bytes([card.sealed[at] ^ 1]) + card.sealed[at + 1 :]
        assert not signing.is_valid(key, card.signature, envelope.card_signature_input(t2, certificate, changed))


@pytest.mark.requirement("A2")
def test_the_answer_holds_the_number_encrypted_only(
    life: Life, tmp_path: Path, open_storage: Callable[[Path, Path], SealedStorage]
) -> None:
    (answer,) = [answer for command, answer in life.said if command.ins == Ins.GET_VIRTUAL_CARD]
    shown = VirtualCard.decode(answer.data).certificate.serial
    stored = open_storage(life.laboratory.home.wallet, tmp_path).get(CREDENTIAL + shown)
    assert stored is not None
    number = Credential.decode(stored).number.digits
    assert bytes.fromhex(number) not in answer.data
    assert number.encode() not in answer.data


@pytest.mark.requirement("A2")
def test_what_the_encryption_module_makes_the_signature_module_signs_and_a_terminal_accepts() -> None:
    authority, scalar, tap_key = PrivateKey.generate(), PrivateKey.generate().scalar(), X25519PrivateKey.generate()
    first, last = whole_months(_TODAY)
    unsigned = CredentialCertificate(
        bytes(8), b"TLIS", Usage.CREDENTIAL, first, last, PrivateKey.from_scalar(scalar).public, bytes(64), 100
    )
    number, t2 = CardNumber.from_index(42), bytes(range(32))
    credential = Credential(scalar, number, 1, issue(unsigned, authority))
    card = CardPlaintext(number, 978, 1, Secret(bytes(16)), bytes(16))
    sealed = encryption_module.encrypt_card(card, tap_key.public_key().public_bytes_raw(), t2)
    answer = VirtualCard(sealed, signature_module.sign_card(credential, sealed, t2), credential.certificate)
    trust = Trust(Authority(b"TLIS", authority.public), _TODAY, ())
    assert verify(answer.encode(), t2, tap_key, trust).card == card
    signed_before = replace(answer, signature=signature_module.sign_card(credential, card.encode(), t2))
    with pytest.raises(VerificationError) as refused:
        verify(signed_before.encode(), t2, tap_key, trust)
    assert refused.value.check is Check.SIGNATURE


# --- A3: Message and shared memory


@pytest.mark.requirement("A3")
def test_each_message_has_the_same_size_and_no_payload_crosses_in_one(life: Life) -> None:
    assert {len(one) for one in life.border.messages} == {MESSAGE_LENGTH}
    pieces = {payload[at : at + 8] for payload in life.border.payloads for at in range(0, len(payload) - 7, 4)}
    pieces = {piece for piece in pieces if len(set(piece)) > 5}  # not numbers that stand anywhere
    together = b"|".join(life.border.messages)
    assert len(pieces) > 1000
    assert [piece for piece in pieces if piece in together] == []


@pytest.mark.requirement("A3")
def test_data_passes_through_shared_memory_in_both_directions(life: Life) -> None:
    (request,) = [command.data for command, _ in life.said if command.ins == Ins.GET_VIRTUAL_CARD]
    (answer,) = [answer.data for command, answer in life.said if command.ins == Ins.GET_VIRTUAL_CARD]
    assert GetVirtualCard.decode(request)
    assert any(request in one for one in life.border.memory[::2])
    assert any(one.startswith(answer) for one in life.border.memory[1::2])


# --- A4: client API, Message, internal API, trusted application


@pytest.mark.requirement("A4")
def test_a_tap_goes_by_the_client_api_and_by_one_message_for_each_command(life: Life) -> None:
    before_commands, before_messages = len(life.border.commands), len(life.border.messages)
    assert life.laboratory.charge("1.00").approved
    tap = [CommandId.BEGIN_TAP, CommandId.GET_VIRTUAL_CARD, CommandId.CHANNEL, CommandId.CHANNEL]
    messages = [Message.decode(one) for one in life.border.messages[before_messages:]]
    mine = [one for one in messages if one.command in tap]  # not those of the housekeeping beside it
    assert [one for one in life.border.commands[before_commands:] if one in tap] == tap
    assert [(one.kind, one.command) for one in mine] == [(Kind.INVOKE_COMMAND, command) for command in tap]
    assert [one.sequence for one in messages] == sorted({one.sequence for one in messages})
    assert len({one.session for one in messages}) == 1


# --- what never crosses (I2)


def _secrets(storage: SealedStorage) -> dict[str, bytes]:
    """Return what must stay in the trusted world, by name."""
    stored = storage.get(DEVICE)
    assert stored is not None
    device, pin = Device.decode(stored), Pin.decode(storage.get(PIN) or b"")
    found = {
        "device signing key": bytes(device.signing_scalar),
        "device sealing key": bytes(device.sealing_key),
        "PIN": _PIN.encode(),
        "PIN's verifier": bytes(pin.verifier),
        "phrase": storage.get(PHRASE) or b"",
    }
    for _, value in storage.items(CREDENTIAL):
        credential = Credential.decode(value)
        serial = credential.certificate.serial.hex()
        found[f"key of {serial}"] = bytes(credential.scalar)
        found[f"number of {serial}"] = bytes.fromhex(credential.number.digits)
        found[f"number of {serial} in digits"] = credential.number.digits.encode()
    return found


def test_every_command_of_the_contract_was_used(life: Life) -> None:
    assert set(life.border.commands) == set(CommandId)


@pytest.mark.attack("I2")
@pytest.mark.requirement("A4")
def test_no_secret_ever_crosses_the_border_whatever_is_asked(
    life: Life, tmp_path: Path, open_storage: Callable[[Path, Path], SealedStorage]
) -> None:
    wallet = life.laboratory.home.wallet
    root = (wallet / "device" / "root.key").read_bytes()
    storage = open_storage(wallet, tmp_path)
    assert storage.get(ANCHORS) is not None
    secrets = _secrets(storage)
    assert len(secrets) >= 2 + 3 * 19  # what a refused payment was asked of is gone
    for label in (Label.STORAGE_KEY, Label.COUNTER_KEY):
        secrets[label.value] = HKDFExpand(SHA256(), 32, labelled(label)).derive(root)
    secrets["root key"] = root
    secrets["hash of the root key"] = hashlib.sha256(root).digest()
    seen = {hashlib.sha256(one).digest(): one for one in life.border.everything}
    for name, secret in secrets.items():
        for form in (secret, secret.hex().encode()):
            assert not any(form in one for one in seen.values()), name


@pytest.mark.attack("I5")
def test_no_secret_is_in_the_wallets_log(
    life: Life,
    tmp_path: Path,
    open_storage: Callable[[Path, Path], SealedStorage],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(1)
    assert life.laboratory.charge("1.00").approved
    said = caplog.text.lower()
    assert "command" in said
    for name, secret in _secrets(open_storage(life.laboratory.home.wallet, tmp_path)).items():
        assert secret.hex() not in said, name
        assert secret.decode("latin-1").lower() not in said, name
