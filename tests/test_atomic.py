"""Files that are written whole or not at all."""

from pathlib import Path

import pytest

from fedmtl import atomic


@pytest.mark.parametrize("path", ["", ".", "/"])
def test_a_folder_is_no_file(path: str) -> None:
    with pytest.raises(IsADirectoryError) as raised:
        atomic.replace(Path(path), lambda file: file.write(b"a"))
    assert raised.value.filename == str(Path(path))


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    file = tmp_path / "a"
    atomic.replace(file, lambda opened: opened.write(b"first"))

    def fail(opened: object) -> None:
        raise OSError("no room")

    with pytest.raises(OSError, match="no room"):
        atomic.replace(file, fail)
    assert file.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [file]
