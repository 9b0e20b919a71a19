# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""`scripts/torture`: taps torn at every byte, processes killed at every step, disks that fail; then the money is counted."""
