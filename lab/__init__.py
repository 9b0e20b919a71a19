# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""What joins the parties: demonstration, measurements, fixtures. Nothing imports it but tests and examples."""
