# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The hardware environment: carries Messages and shared memory between the two worlds and keeps them apart."""
