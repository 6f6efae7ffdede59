"""A terminal's screen, as far as rich uses one: to see what stands there in the end."""

import re

WORDS = re.compile(r"\x1b\[(\??\d*(?:;\d+)*)([A-Za-z])|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|(\r|\n)|([^\x1b\r\n]+)")


class Screen:
    """Rows of text with a cursor; what is scrolled out stays in `rows`.

    Args:
        width: columns; longer lines go on in the next row.
        height: rows that the cursor can reach.
    """

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.rows = [""]
        self.row = self.column = 0
        self.broken = 0  # lines that were longer than the screen is wide

    def feed(self, text: str) -> "Screen":
        """Takes what a program writes."""
        for word in WORDS.finditer(text):
            values, command, end, plain = word.groups()
            top = max(len(self.rows) - self.height, 0)
            count = int(values) if (values or "").isdigit() else 1
            if plain:
                self._write(plain)
            elif end == "\r":
                self.column = 0
            elif end == "\n":
                self._down()
            elif command == "A":
                self.row = max(self.row - count, top)
            elif command == "H":
                self.row, self.column = top, 0
            elif command == "K":
                self.rows[self.row] = "" if values == "2" else self.rows[self.row][: self.column]
            elif command == "J":
                self.rows[top:] = [""] * (len(self.rows) - top)
            else:
                assert command in ("m", "h", "l", None), word
        return self

    def _down(self) -> None:
        self.row, self.column = self.row + 1, 0
        if self.row == len(self.rows):
            self.rows.append("")

    def _write(self, text: str) -> None:
        for mark in text:
            if self.column == self.width:
                self.broken += 1
                self._down()
            line = self.rows[self.row].ljust(self.column)
            self.rows[self.row] = line[: self.column] + mark + line[self.column + 1 :]
            self.column += 1

    @property
    def text(self) -> str:
        """All rows, without blanks at their ends."""
        return "\n".join(row.rstrip() for row in self.rows).strip("\n")
