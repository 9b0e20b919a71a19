# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""What the commands share, so that they speak alike: options, exit codes, errors, money on the screen."""
