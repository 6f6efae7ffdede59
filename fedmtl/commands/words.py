"""What commands share: sizes on the command line, lines and tables on the terminal."""

from argparse import ArgumentTypeError
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

WIDE = 1000  # characters of a line that goes to a file or another program


def size(text: str) -> tuple[int, int]:
    """Height and width of a word such as ``480,640``.

    Raises:
        ArgumentTypeError: it is none.
    """
    sides = text.split(",")
    if len(sides) != 2 or not all(side.strip().isdecimal() and 0 < int(side) < 2**15 for side in sides):
        raise ArgumentTypeError(f"must be a height and a width such as 480,640, not {text}")
    return int(sides[0]), int(sides[1])


def terminal() -> "Console":
    """Where to print; what goes to a file or another program has long lines, so that no table is cut off there."""
    from rich.console import Console

    made = Console()
    if not made.is_terminal:
        made.width = WIDE
    return made


def say(console: "Console", text: str) -> None:
    """Prints a line as it is, with marks in place of what would act on the terminal."""
    from fedmtl.runs import printable

    console.print(printable(text), highlight=False, markup=False, soft_wrap=True)
