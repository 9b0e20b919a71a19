# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The phone: a card by name, the client application, the hardware environment and the trusted application."""
