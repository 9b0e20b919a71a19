# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Links: bytes in, bytes out, both ends side by side, opened by URL."""
