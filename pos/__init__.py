# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The terminal: selects the application, asks for the virtual card, verifies it, debits it. `pos.terminal` is the way in."""
