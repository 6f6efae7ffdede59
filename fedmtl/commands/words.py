"""What the commands that use a run's model share: sizes on the command line, lines on the terminal."""

from argparse import ArgumentTypeError
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


def size(text: str) -> tuple[int, int]:
    """Height and width of a word such as ``480,640``.

    Raises:
        ArgumentTypeError: it is none.
    """
    sides = text.split(",")
    if len(sides) != 2 or not all(side.strip().isdecimal() and 0 < int(side) < 2**15 for side in sides):
        raise ArgumentTypeError(f"must be a height and a width such as 480,640, not {text}")
    return int(sides[0]), int(sides[1])


def say(console: "Console", text: str) -> None:
    """Prints a line as it is, with marks in place of what would act on the terminal."""
    from fedmtl.runs import printable

    console.print(printable(text), highlight=False, markup=False, soft_wrap=True)
