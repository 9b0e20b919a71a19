# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""What layouts are made of beside construct's own parts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from construct import Adapter, Construct

if TYPE_CHECKING:
    AnyAdapter = Adapter[Any, Any, Any, Any]
    AnyConstruct = Construct[Any, Any]
else:  # construct's own classes take no type arguments at run time
    AnyAdapter = Adapter
    AnyConstruct = Construct


class Fields(AnyConstruct):
    """Named fields one after another: construct's Struct for layouts in which no field depends on another one.

    Struct keeps a context for such references at every level, which cost half the time of a message.
    """

    def __init__(self, *fields: Any) -> None:
        """Describe `fields`, each written as `"name" / construct`, or without a name when it holds no value."""
        super().__init__()
        self._fields = tuple((field.name, field.subcon if field.name else field) for field in fields)

    def _parse(self, stream: Any, context: Any, path: Any) -> dict[str, Any]:
        parsed = {name: field._parse(stream, context, f"{path} -> {name}") for name, field in self._fields}
        parsed.pop(None, None)
        return parsed

    def _build(self, obj: Any, stream: Any, context: Any, path: Any) -> Any:
        for name, field in self._fields:
            field._build(obj[name] if name else None, stream, context, f"{path} -> {name}")
        return obj
