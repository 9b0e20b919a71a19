# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""File control information and the payment directory: EMV Book 1 §11.3.4 and EMV Contactless Book B §3.3."""

from __future__ import annotations

from dataclasses import dataclass

from protocol import tlv
from protocol.errors import DecodeError
from protocol.tags import Tag

MAX_NAME = 16  # ISO 7816-4 §11.2.2
DIRECTORY_NAME = b"2PAY.SYS.DDF01"  # EMV Contactless Book B §3.3.1: PPSE


@dataclass(frozen=True, slots=True)
class ApplicationFci:
    """The answer of our application to SELECT: its full name and what it offers, best first.

    There is no label, so that all wallets answer alike and no byte is spent.
    """

    name: bytes
    versions: tuple[int, ...]
    suites: tuple[int, ...]

    def encode(self) -> bytes:
        """Return 6F { 84 name, A5 { 80 versions, 81 suites } }."""
        offer = tlv.template(
            Tag.FCI_PROPRIETARY, [(Tag.VERSIONS, bytes(self.versions)), (Tag.SUITES, bytes(self.suites))]
        )
        return tlv.encode(Tag.FCI_TEMPLATE, tlv.encode(Tag.DF_NAME, self.name) + offer)

    @classmethod
    def decode(cls, data: bytes) -> ApplicationFci:
        """Return the FCI of `data`; DecodeError when it is not one of this application (of another card, say)."""
        inner = tlv.parse(tlv.require(tlv.parse(data, "FCI"), Tag.FCI_TEMPLATE, "FCI"), "FCI")
        offer = tlv.parse(tlv.require(inner, Tag.FCI_PROPRIETARY, "FCI"), "FCI")
        versions = tlv.require(offer, Tag.VERSIONS, "FCI")
        suites = tlv.require(offer, Tag.SUITES, "FCI")
        return cls(_name(inner, Tag.DF_NAME, "FCI"), tuple(versions), tuple(suites))


@dataclass(frozen=True, slots=True)
class DirectoryEntry:
    """One application in the directory: its name, what a person reads, its priority (1 is first, 0 is none)."""

    name: bytes
    label: str
    priority: int

    def encode(self) -> bytes:
        """Return 61 { 4F name, 50 label, 87 priority }."""
        return tlv.template(
            Tag.APPLICATION_TEMPLATE,
            [
                (Tag.ADF_NAME, self.name),
                (Tag.APPLICATION_LABEL, self.label.encode("ascii")),
                (Tag.APPLICATION_PRIORITY, bytes([self.priority])),
            ],
        )

    @classmethod
    def decode(cls, value: bytes) -> DirectoryEntry:
        """Return the entry in the value of a 61; label and priority may be missing."""
        objects = tlv.parse(value, "Directory")
        label = objects.get(Tag.APPLICATION_LABEL, b"").decode("ascii", "replace")
        priority = objects.get(Tag.APPLICATION_PRIORITY, b"\0")
        if len(priority) != 1:
            raise DecodeError("Directory", "87", "not one byte")
        return cls(_name(objects, Tag.ADF_NAME, "Directory"), label, priority[0] & 0x0F)


def _name(objects: dict[int, bytes], tag: Tag, structure: str) -> bytes:
    name = tlv.require(objects, tag, structure)
    if not 1 <= len(name) <= MAX_NAME:
        raise DecodeError(structure, f"{tag:X}", "no name that SELECT could carry")
    return name


def encode_directory(entries: tuple[DirectoryEntry, ...]) -> bytes:
    """Return 6F { 84 2PAY.SYS.DDF01, A5 { BF0C { 61… } } }."""
    listed = tlv.encode(Tag.FCI_ISSUER_DISCRETIONARY, b"".join(entry.encode() for entry in entries))
    proprietary = tlv.encode(Tag.FCI_PROPRIETARY, listed)
    return tlv.encode(Tag.FCI_TEMPLATE, tlv.encode(Tag.DF_NAME, DIRECTORY_NAME) + proprietary)


def decode_directory(data: bytes) -> tuple[DirectoryEntry, ...]:
    """Return the applications of a directory in order of priority; DecodeError when it is none."""
    inner = tlv.parse(tlv.require(tlv.parse(data, "Directory"), Tag.FCI_TEMPLATE, "Directory"), "Directory")
    proprietary = tlv.parse(tlv.require(inner, Tag.FCI_PROPRIETARY, "Directory"), "Directory")
    listed = tlv.require(proprietary, Tag.FCI_ISSUER_DISCRETIONARY, "Directory")
    entries = [
        DirectoryEntry.decode(value)
        for tag, value in tlv.parse_list(listed, "Directory")
        if tag == Tag.APPLICATION_TEMPLATE
    ]
    return tuple(sorted(entries, key=lambda entry: entry.priority or 16))
