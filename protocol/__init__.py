# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""The language between the parties: values in, values out; no keys kept, no state, no printing."""
