# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Every wire structure has vectors in vectors.json, and nothing but those exact bytes decodes to them."""

from __future__ import annotations

import gc
import importlib
import json
import pkgutil
import sys
from collections.abc import Iterator
from dataclasses import fields
from datetime import date, time
from enum import IntEnum
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args, get_origin, get_type_hints

import pytest

import protocol
from protocol.card_number import CardNumber
from protocol.certificate import CredentialCertificate, TerminalCertificate, issue
from protocol.errors import DecodeError
from protocol.signing import PrivateKey
from protocol.wire import Wire

_VECTORS: dict[str, list[dict[str, Any]]] = json.loads(Path(__file__).with_name("vectors.json").read_text("utf-8"))

# A structure that ends with bytes of any length cannot tell that some are missing or were added; what guards it is named.
_OPEN_ENDED = {
    "issuing.Issuance": "sealed_numbers runs to the end; the HPKE tag and the issuer's signature cover its length",
    "messages.DebitResult": "one signature or two; a whole message in the channel, so the tag covers its length",
    "messages.Confirm": "empty means this session's receipt; a whole message in the channel, so the tag covers its length",
}


def _leaves(kind: type[Wire]) -> Iterator[type[Wire]]:
    below = [sub for sub in kind.__subclasses__() if _is_current(sub)]
    for sub in below:
        yield from _leaves(sub)
    if not below and not kind.__name__.startswith("_"):
        yield kind


def _is_current(kind: type[Wire]) -> bool:
    """Tell a class from the one without slots that `dataclass(slots=True)` made it of, and from those of other packages."""
    return kind.__module__.startswith("protocol.") and (
        getattr(sys.modules[kind.__module__], kind.__name__, None) is kind
    )


def _wire_classes() -> dict[str, type[Wire]]:
    for module in pkgutil.walk_packages(protocol.__path__, "protocol."):
        importlib.import_module(module.name)
    gc.collect()
    return {f"{kind.__module__.removeprefix('protocol.')}.{kind.__name__}": kind for kind in _leaves(Wire)}


_CLASSES = _wire_classes()
_CASES = [
    pytest.param(_CLASSES[name], vector, id=f"{name}-{number}")
    for name, vectors in _VECTORS.items()
    if name in _CLASSES
    for number, vector in enumerate(vectors)
]
every_vector = pytest.mark.parametrize(("kind", "vector"), _CASES)


def _value(kind: type[Wire], readable: dict[str, Any]) -> Wire:
    assert set(readable) == {field.name for field in fields(kind)}, "a vector names every field"
    hints = _hints(kind)
    return kind(**{name: _field(hints[name], what) for name, what in readable.items()})


def _hints(kind: type[Wire]) -> dict[str, Any]:
    """Return the types of the fields; not of LAYOUT, which only a type checker can read."""
    annotated = SimpleNamespace(__annotations__={field.name: field.type for field in fields(kind)})
    return get_type_hints(annotated, vars(sys.modules[kind.__module__]))


def _field(kind: Any, readable: Any) -> Any:
    if get_origin(kind) is tuple:
        return tuple(_field(get_args(kind)[0], item) for item in readable)
    if issubclass(kind, Wire):
        return _value(kind, readable)
    if issubclass(kind, IntEnum):
        return kind[readable]
    if issubclass(kind, bytes):
        return kind(bytes.fromhex(readable))
    if issubclass(kind, (date, time)):
        return kind.fromisoformat(readable)
    return CardNumber(readable) if kind is CardNumber else kind(readable)


def _decodes(kind: type[Wire], data: bytes) -> bool:
    """Tell whether `data` decodes, and require that what does is canonical and what does not is a named DecodeError."""
    try:
        value = kind.decode(data)
    except DecodeError as error:
        refused = error
    else:
        assert value.encode() == data
        return True
    assert refused.structure == kind.__name__
    assert str(refused).startswith(kind.__name__)
    return False


def test_every_wire_class_is_found() -> None:
    assert {"messages.Receipt", "certificate.Merchant", "vouchers.Voucher"} <= set(_CLASSES)
    assert not any(name.split(".")[1].startswith("_") for name in _CLASSES)


def test_every_wire_class_has_a_vector() -> None:
    assert sorted(_CLASSES) == sorted(name for name, vectors in _VECTORS.items() if vectors)


@every_vector
def test_value_encodes_to_the_vector(kind: type[Wire], vector: dict[str, Any]) -> None:
    assert _value(kind, vector["fields"]).encode().hex() == vector["hex"]


@every_vector
def test_vector_decodes_to_the_value(kind: type[Wire], vector: dict[str, Any]) -> None:
    decoded = kind.decode(bytes.fromhex(vector["hex"]))
    assert decoded == _value(kind, vector["fields"])
    assert type(decoded) is kind


@every_vector
def test_decoded_fields_have_the_declared_types(kind: type[Wire], vector: dict[str, Any]) -> None:
    decoded, meant = kind.decode(bytes.fromhex(vector["hex"])), _value(kind, vector["fields"])
    for field in fields(kind):
        assert type(getattr(decoded, field.name)) is type(getattr(meant, field.name)), field.name


@every_vector
def test_cut_vector_is_refused(kind: type[Wire], vector: dict[str, Any]) -> None:
    data = bytes.fromhex(vector["hex"])
    accepted = [length for length in range(len(data)) if _decodes(kind, data[:length])]
    assert not accepted or _name(kind) in _OPEN_ENDED


@every_vector
@pytest.mark.parametrize("added", [b"\x00", b"\x80", b"\xff"])
def test_vector_with_a_byte_too_many_is_refused(kind: type[Wire], vector: dict[str, Any], added: bytes) -> None:
    assert not _decodes(kind, bytes.fromhex(vector["hex"]) + added) or _name(kind) in _OPEN_ENDED


@pytest.mark.parametrize("name", sorted(_OPEN_ENDED))
def test_open_ended_structure_loses_only_its_last_field(name: str) -> None:
    kind = _CLASSES[name]
    for vector in _VECTORS[name]:
        data = bytes.fromhex(vector["hex"])
        whole = kind.decode(data)
        *kept, _ = fields(kind) if name != "issuing.Issuance" else (fields(kind)[0], fields(kind)[2], fields(kind)[1])
        cut = [kind.decode(data[:length]) for length in range(len(data)) if _decodes(kind, data[:length])]
        assert all(getattr(one, field.name) == getattr(whole, field.name) for one in cut for field in kept)


def test_no_structure_is_exempted_without_need() -> None:
    needed = {
        name
        for name, kind in _CLASSES.items()
        for vector in _VECTORS.get(name, [])
        for length in range(len(vector["hex"]) // 2)
        if _decodes(kind, bytes.fromhex(vector["hex"])[:length])
    }
    assert needed == set(_OPEN_ENDED)


def test_certificates_in_the_vectors_are_signed(acquirer_key: PrivateKey, issuer_key: PrivateKey) -> None:
    for vector in _VECTORS["certificate.TerminalCertificate"]:
        terminal = TerminalCertificate.decode(bytes.fromhex(vector["hex"]))
        assert issue(terminal, acquirer_key) == terminal
    for vector in _VECTORS["certificate.CredentialCertificate"]:
        credential = CredentialCertificate.decode(bytes.fromhex(vector["hex"]))
        assert issue(credential, issuer_key) == credential


def test_fixtures_are_the_first_certificates_of_the_vectors(
    terminal_certificate: TerminalCertificate, credential_certificate: CredentialCertificate
) -> None:
    assert terminal_certificate.encode().hex() == _VECTORS["certificate.TerminalCertificate"][0]["hex"]
    assert credential_certificate.encode().hex() == _VECTORS["certificate.CredentialCertificate"][0]["hex"]


@pytest.mark.parametrize(
    ("kind", "data", "field"),
    [
        ("messages.RelayCheck", "0102", "value"),
        ("messages.DebitResult", "77" + 64 * "00", "result"),
        ("messages.Debit", "0000000012AB 0978 260715 101112", "amount"),
        ("messages.Debit", "000000001250 0978 261315 101112", "date"),
        ("messages.Debit", "000000001250 0978 260715 250000", "time"),
        ("messages.CardPlaintext", "9999100000000000 0978 0001" + 64 * "00", "number"),
        ("certificate.TerminalCertificate", "7F2105 9303010203", "serial"),
        ("issuing.Anchors", "01020304", "issuer_key"),
        ("issuing.Refusal", "77", "reason"),
    ],
)
def test_decode_error_names_the_field(kind: str, data: str, field: str) -> None:
    with pytest.raises(DecodeError) as caught:
        _CLASSES[kind].decode(bytes.fromhex(data))
    assert caught.value.field == field


def _name(kind: type[Wire]) -> str:
    return f"{kind.__module__.removeprefix('protocol.')}.{kind.__name__}"
