"""Pictures of all kinds are read as the data sets read theirs, or refused in one line; output names stay apart."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fedmtl.data import decode
from fedmtl.errors import UserError
from fedmtl.prediction.pictures import Names, find, read

RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK"])
def test_modes(mode: str, tmp_path: Path) -> None:
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    picture = Image.fromarray(RGB).convert(mode)
    picture.save(path)
    found = read(path)
    assert found.shape == (6, 9, 3)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, np.asarray(picture.convert("RGB")))
    if mode in ("RGB", "RGBA", "L", "P"):
        np.testing.assert_array_equal(found, decode.image(None, path))


def test_16_bits_are_scaled(tmp_path: Path) -> None:
    values = np.array([[0, 128, 129, 257 * 100, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert read(tmp_path / "a.png")[0, :, 1].tolist() == np.rint(values[0] / 257).astype(int).tolist()


def test_exif_turns_it_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read(tmp_path / "a.png"), np.rot90(RGB, -1))


def test_broken_files_are_named(tmp_path: Path) -> None:
    Image.fromarray(np.repeat(RGB, 40, 0)).save(tmp_path / "whole.jpg")
    data = (tmp_path / "whole.jpg").read_bytes()
    bad = {"cut.jpg": data[: len(data) // 2], "text.png": b"no picture", "empty.jpg": b"", "gone.png": None}
    for name, content in bad.items():
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UserError) as refused:
            read(path)
        assert str(path) in str(refused.value)
        assert "\n" not in str(refused.value)
    Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(UserError, match="floating-point"):
        read(tmp_path / "float.tif")


def test_find(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "deep/er/a.png", ".hidden/x.png", "out/old.png", "notes.txt"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    root = tmp_path / "in"
    found = find([str(root), str(root / "b.png"), str(root / "nothing.png")], leave_out=root / "out")
    assert [below.as_posix() for _, below in found.files] == ["a.JPG", "b.png", "deep/er/a.png"]
    assert found.others == 1
    assert [problem.split(":")[0] for problem in found.problems] == [str(root / "nothing.png")]
    assert [f.name for f, _ in find([str(root / "**/*.png")], leave_out=tmp_path).files] == [
        "b.png",
        "a.png",
        "old.png",
    ]
    assert find([str(root / "notes.txt")], leave_out=tmp_path).files  # what is named is tried
    assert (
        "holds no picture"
        in find([str(root / ".hidden" / "..") + "/out/none", str(tmp_path)], leave_out=root).problems[1]
    )


@given(st.lists(st.text(min_size=1, max_size=120), max_size=20))
def test_names_never_meet_nor_leave(texts: list[str]) -> None:
    names = Names(["taken"])
    given_out = [names(Path(text)) for text in ["taken.png", "../../x.png", "/etc/passwd", *texts]]
    assert len({name.casefold() for name in given_out} | {"taken"}) == len(given_out) + 1
    for name in given_out:
        assert name == Path(name).name
        assert name not in (".", "..")
        assert not name.startswith(".")
        assert name.isprintable()


@pytest.mark.parametrize("text", ["字", "é", "a字", "a", "🙂字"])
def test_long_names_can_be_made(text: str, tmp_path: Path) -> None:
    names = Names()
    for name in [names(Path(text * 100 + f"{end}.png")) for end in ("", "x", "x")]:
        (tmp_path / name).mkdir()
        assert len(name.encode()) < 143
        assert "\N{REPLACEMENT CHARACTER}" not in name


def test_names_read_well() -> None:
    names = Names()
    assert [names(Path(p)) for p in ("a/b.png", "a/b.jpg", "A/B.png", "room 1.png")] == [
        "a__b",
        "a__b-2",
        "A__B-3",
        "room 1",
    ]
