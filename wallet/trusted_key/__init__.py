# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The Trusted Key: a small device beside the phone, a card of four modules, each of which can be left out."""
