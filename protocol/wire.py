# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""One way to describe a wire structure: a frozen value class beside its construct layout, strict in both directions."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import date, time
from typing import Any, ClassVar, Self

from construct import Bytes, Construct, ConstructError, ValidationError, stream_write

from protocol.errors import DecodeError
from protocol.layout import AnyAdapter, AnyConstruct


@dataclass(frozen=True)
class Wire:
    """A message: `encode` builds it and `decode` accepts exactly the bytes that `encode` would have made.

    A value never changes, so its bytes are built once and kept: certificates are hashed, signed and sent again and again.
    """

    __slots__ = ("_encoded",)
    LAYOUT: ClassVar[Construct[Any, Any]]

    def encode(self) -> bytes:
        """Return the bytes of this value."""
        try:
            return self._encoded  # type: ignore[no-any-return, attr-defined]
        except AttributeError:
            encoded = self.LAYOUT.build({name: getattr(self, name) for name in _names(type(self))})
            object.__setattr__(self, "_encoded", encoded)
            return encoded

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Return the value of `data`; DecodeError names the field that is not exactly one encoding."""
        try:
            parsed = cls.LAYOUT.parse(data)
            value = cls(**{name: parsed[name] for name in _names(cls)})
        except ConstructError as error:
            raise DecodeError(cls.__name__, _field_of(error), _reason(error)) from None
        except (ValueError, TypeError) as error:
            raise DecodeError(cls.__name__, "", str(error)) from None
        if (encoded := value.encode()) != data:
            why = "bytes after the end" if data.startswith(encoded) else "not in its one canonical form"
            raise DecodeError(cls.__name__, "", why)
        return value


_known_names: dict[type[Any], tuple[str, ...]] = {}


def _names(kind: type[Any]) -> tuple[str, ...]:
    if kind not in _known_names:
        _known_names[kind] = tuple(field.name for field in fields(kind))
    return _known_names[kind]


def _field_of(error: ConstructError) -> str:
    path = str(getattr(error, "path", "") or "")
    names = [part for part in path.replace("(parsing)", "").split(" -> ") if part.strip()]
    return ".".join(name.strip() for name in names)


def _reason(error: ConstructError) -> str:
    if isinstance(error.__cause__, ValueError):
        return str(error.__cause__)
    # construct quotes the offending bytes in some messages; bytes of a message never belong in an error.
    return {
        "StreamError": "too short",
        "TerminatedError": "bytes after the end",
        "ConstError": "not the value that stands here",
        "MappingError": "unknown value",
    }.get(type(error).__name__, "malformed")


class Nested(AnyConstruct):
    """A Wire value inside another one."""

    def __init__(self, kind: type[Wire]) -> None:
        """Describe a field that holds one `kind`."""
        super().__init__()
        self._kind = kind

    def _parse(self, stream: Any, context: Any, path: Any) -> Wire:
        parsed = self._kind.LAYOUT._parsereport(stream, context, path)
        return self._kind(**{name: parsed[name] for name in _names(self._kind)})

    def _build(self, obj: Wire, stream: Any, context: Any, path: Any) -> Any:
        data = obj.encode()
        stream_write(stream, data, len(data), path)
        return obj


class FieldAdapter(AnyAdapter):
    """An adapter whose ValueErrors, raised when a value makes no sense, name the field where it stood."""

    def _parse(self, stream: Any, context: Any, path: Any) -> Any:
        try:
            return super()._parse(stream, context, path)
        except ValueError as error:
            raise ValidationError("value refused", path=path) from error


class Coded(FieldAdapter):
    """An enumeration on the wire; a value that is not in it is refused."""

    def __init__(self, codes: type[Any], subcon: Construct[Any, Any]) -> None:
        """Describe a field that holds a member of `codes`, carried as `subcon`."""
        super().__init__(subcon)
        self._codes = codes

    def _decode(self, obj: Any, context: Any, path: Any) -> Any:
        return self._codes(obj)

    def _encode(self, obj: Any, context: Any, path: Any) -> Any:
        return obj.value


class Digits(FieldAdapter):
    """Decimal digits two to a byte, EMV Book 3 §4.3 format n, as a string of fixed length."""

    def __init__(self, digits: int) -> None:
        """Describe a field of `digits` decimal digits (even)."""
        super().__init__(Bytes(digits // 2))
        self._digits = digits

    def _decode(self, obj: bytes, context: Any, path: Any) -> str:
        text = obj.hex()
        if not text.isdecimal():
            raise ValueError("not decimal digits")
        return text

    def _encode(self, obj: str, context: Any, path: Any) -> bytes:
        return bytes.fromhex(obj.rjust(self._digits, "0"))


class NumericInt(Digits):
    """A whole number in format n."""

    def _decode(self, obj: bytes, context: Any, path: Any) -> int:  # type: ignore[override]
        return int(super()._decode(obj, context, path))

    def _encode(self, obj: int, context: Any, path: Any) -> bytes:  # type: ignore[override]
        if not 0 <= obj < 10**self._digits:
            raise ValueError(f"{obj} does not fit {self._digits} digits")
        return super()._encode(str(obj), context, path)


class NumericDate(Digits):
    """A date in format n: YYMMDD (EMV tag 9A) or YYYYMMDD (GlobalPlatform tags 5F24, 5F25)."""

    def _decode(self, obj: bytes, context: Any, path: Any) -> date:  # type: ignore[override]
        text = super()._decode(obj, context, path)
        year = int(text[:-4]) + (2000 if self._digits == 6 else 0)
        return date(year, int(text[-4:-2]), int(text[-2:]))

    def _encode(self, obj: date, context: Any, path: Any) -> bytes:  # type: ignore[override]
        if self._digits == 6 and not 2000 <= obj.year <= 2099:
            raise ValueError("a two-digit year stands for 2000 to 2099")
        return super()._encode(obj.isoformat().replace("-", "")[-self._digits :], context, path)


class NumericTime(Digits):
    """A time of day in format n, HHMMSS (EMV tag 9F21)."""

    def __init__(self) -> None:
        """Describe a field of six digits."""
        super().__init__(6)

    def _decode(self, obj: bytes, context: Any, path: Any) -> time:  # type: ignore[override]
        text = super()._decode(obj, context, path)
        return time(int(text[:2]), int(text[2:4]), int(text[4:]))

    def _encode(self, obj: time, context: Any, path: Any) -> bytes:  # type: ignore[override]
        return super()._encode(obj.isoformat("seconds").replace(":", ""), context, path)
