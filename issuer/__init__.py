# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The scheme: certifies wallets and terminals, hands out money, says what is blocked. Acquirer and issuer in one house."""
