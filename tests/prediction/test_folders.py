"""A folder takes its place whole, or what was there stays."""

from pathlib import Path

import pytest

from fedmtl.prediction.folders import replacing


def test_whole(tmp_path: Path) -> None:
    place = tmp_path / "above" / "place"
    for text in ("one", "two"):
        with replacing(place) as folder:
            (folder / text).touch()
        assert [path.name for path in place.iterdir()] == [text]
    assert [path.name for path in place.parent.iterdir()] == ["place"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_not_at_all(error: type[BaseException], tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    (place / "old").touch()

    def write() -> None:
        with replacing(place) as folder:
            (folder / "new").touch()
            raise error

    with pytest.raises(error):
        write()
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["place", "place/old"]


def test_what_can_not_be_put_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, rename = tmp_path / "place", Path.rename
    place.mkdir()
    (place / "old").touch()

    def fails(path: Path, target: Path) -> Path:
        if path.name == "new":
            raise OSError("no")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(OSError, match="no"), replacing(place):
        pass
    assert [path.name for path in place.iterdir()] == ["old"]
