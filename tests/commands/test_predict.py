"""What `fedmtl predict` makes of a batch that fails."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fedmtl.commands.predict import _labels, parser
from fedmtl.errors import UserError


class Picky:
    """A model that takes no black picture, nor any batch with one."""

    def stream(self, batch: Any, **_: Any) -> Iterator[Any]:
        if any(not picture.any() for _, picture in batch):
            raise UserError("too dark")
        yield from ((key, picture, {}) for key, picture in batch)


def test_one_failing_picture_fails_alone() -> None:
    batch: Any = [((Path(f"{value}.png"), Path()), np.full((2, 2, 3), value, np.uint8)) for value in (0, 1, 2)]
    said: list[str] = []
    model: Any = Picky()
    done = _labels(model, batch, SimpleNamespace(tasks=None, size=None), said.append)  # type: ignore[arg-type]
    assert [path.name for (path, _), _, _ in done] == ["1.png", "2.png"]
    assert said == ["0.png: too dark; --size H,W takes it in another size"]


def test_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    assert parser().parse_args(["run", "a.png", "--size", "480,640"]).size == (480, 640)
    assert parser().parse_args(["run", "a.png", "--size", "keep"]).size is None
    for wrong in ("480", "0,1", "a,b", "1,40000"):
        with pytest.raises(SystemExit):
            parser().parse_args(["run", "a.png", "--size", wrong])
        assert "must be a height and a width" in capsys.readouterr().err
