# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""What layouts are made of beside construct's own parts."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any

from construct import Adapter, Construct, ConstructError, Container

if TYPE_CHECKING:
    AnyAdapter = Adapter[Any, Any, Any, Any]
    AnyConstruct = Construct[Any, Any]
else:  # construct's own classes take no type arguments at run time
    AnyAdapter = Adapter
    AnyConstruct = Construct

_EMPTY: Any = Container(_parsing=False, _building=False, _sizing=False)
_EMPTY._params = _EMPTY  # construct's own parts hand it on


class Fields(AnyConstruct):
    """Named fields one after another: construct's Struct for layouts in which no field depends on another one.

    Struct keeps a context for such references at every level, which cost half the time of a message. Here all share an
    empty one, and where a field stands is put together only for an error.
    """

    def __init__(self, *fields: Any) -> None:
        """Describe `fields`, each written as `"name" / construct`, or without a name when it holds no value."""
        super().__init__()
        self._fields = tuple((field.name, field.subcon if field.name else field) for field in fields)

    def parse(self, data: Any, **contextkw: Any) -> Any:
        """Return the values of `data` by name."""
        if contextkw:
            return super().parse(data, **contextkw)
        return self._parse(BytesIO(data), _EMPTY, "")

    def build(self, obj: Any, **contextkw: Any) -> bytes:
        """Return the bytes of the values in `obj`."""
        if contextkw:
            return super().build(obj, **contextkw)
        stream = BytesIO()
        self._build(obj, stream, _EMPTY, "")
        return stream.getvalue()

    def _parse(self, stream: Any, context: Any, path: Any) -> dict[str, Any]:
        parsed: dict[Any, Any] = {}
        try:
            for name, field in self._fields:
                parsed[name] = field._parse(stream, context, "")
        except ConstructError as error:
            own = f" -> {name}" if name else ""
            error.path = f"{path}{own}{error.path or ''}"
            raise
        parsed.pop(None, None)
        return parsed

    def _build(self, obj: Any, stream: Any, context: Any, path: Any) -> Any:
        for name, field in self._fields:
            field._build(obj[name] if name else None, stream, context, "")
        return obj
