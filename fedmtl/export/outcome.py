"""How the export of one format went."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Outcome:
    """How the export of one format went.

    Attributes:
        format: its name.
        difference: largest absolute difference from the original's outputs on the test pictures.
        scale: largest absolute output of the original, at least 1.
        size: height and width of the test pictures.
        free: which of batch, height and width are open in the program.
        stride: open heights and widths are multiples of this many pixels, two or more.
        note: what else there is to know of it, in a sentence.
        reason: why it failed, None if it did not.
    """

    format: str
    difference: float = 0.0
    scale: float = 1.0
    size: tuple[int, int] = (0, 0)
    free: tuple[str, ...] = ()
    stride: int = 1
    note: str = ""
    reason: str | None = None

    @property
    def done(self) -> bool:
        """Whether it is there."""
        return self.reason is None

    @property
    def takes(self) -> str:
        """Which pictures a program takes, in words."""
        if "height" in self.free:
            return f"any batch; heights and widths in multiples of {self.stride} from {2 * self.stride} pixels on"
        sides = "×".join(map(str, self.size))
        return f"any batch of {sides} pixels" if self.free else f"one picture of {sides} pixels"
