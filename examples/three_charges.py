# SPDX-FileCopyrightText: TapLab contributors
# SPDX-License-Identifier: MIT
"""Three taps: approved, too little money, card removed."""

from lab.fixtures import Laboratory


def main() -> None:
    """Charge a wallet that holds 20.00 EUR three times."""
    with Laboratory(balance="20.00") as laboratory:
        print(laboratory.charge("12.50"))
        print(laboratory.charge("12.50"))
        print(laboratory.charge("1.00", fault="tear@frame:5"))
        print("left in the wallet:", laboratory.balance)


if __name__ == "__main__":
    main()
