# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Tags by name. Those of EMV Book 1 Annex B, EMV Book 3 Annex A and GlobalPlatform Amendment F keep their meaning."""

from __future__ import annotations

from enum import IntEnum


class Tag(IntEnum):
    """Data objects on our wire; the last block is project-defined."""

    ISSUER_IDENTIFICATION_NUMBER = 0x42
    APPLICATION_TEMPLATE = 0x61
    FCI_TEMPLATE = 0x6F
    DF_NAME = 0x84
    FCI_PROPRIETARY = 0xA5
    ADF_NAME = 0x4F
    APPLICATION_LABEL = 0x50
    APPLICATION_PRIORITY = 0x87
    FCI_ISSUER_DISCRETIONARY = 0xBF0C

    CERTIFICATE = 0x7F21
    CERTIFICATE_SERIAL = 0x93
    SUBJECT_IDENTIFIER = 0x5F20
    KEY_USAGE = 0x95
    EFFECTIVE_DATE = 0x5F25
    EXPIRATION_DATE = 0x5F24
    DISCRETIONARY_DATA = 0x73
    PUBLIC_KEY = 0x7F49
    PUBLIC_KEY_POINT = 0xB0
    SIGNATURE = 0x5F37

    MERCHANT_NAME = 0x9F4E
    MERCHANT_CATEGORY = 0x9F15
    TRANSACTION_CURRENCY = 0x5F2A
    AMOUNT = 0x9F02
    TRANSACTION_DATE = 0x9A
    TRANSACTION_TIME = 0x9F21

    VERSIONS = 0x80  # project-defined, inside A5: protocol versions, best first, a byte each
    SUITES = 0x81  # project-defined, inside A5: cryptographic suites, best first, a byte each
    KEY_MODULES = 0x82  # project-defined, inside A5: modules of a Trusted Key, a byte each
    OFFLINE_CEILING = 0xC0  # project-defined, inside 73: most that one receipt may claim, n12
    CO_SIGNING_KEY = 0xC1  # project-defined, inside 7F21: a Trusted Key's point, which signs the receipt too
