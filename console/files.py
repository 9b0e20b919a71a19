# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Files that only their owner can read, written all or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_privately(path: Path, data: bytes) -> None:
    """Put `data` into `path` with mode 0600; after a crash there is the old file or the new one, never half of one."""
    temporary = path.with_name(f"{path.name}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(directory)
    os.close(directory)
