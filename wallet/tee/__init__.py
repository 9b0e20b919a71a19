# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The secure world, one process of its own. Only contract.py and client.py are for the other world to import."""
