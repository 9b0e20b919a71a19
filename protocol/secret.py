# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Bytes that must not be shown: their repr and str say how long they are and nothing else."""

from __future__ import annotations


class Secret(bytes):
    """Key material or a channel secret; equal to the same bytes, but never printed, not even in a traceback."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"Secret({len(self)} bytes)"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return format(repr(self), spec)
