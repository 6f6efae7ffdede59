import numpy as np
import pytest
from PIL import Image

from fedmtl.tracking.figures import save_sheet, save_strips, sheet


def noise(*size: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)


def test_sheet_of_a_run_keeps_its_pixels(tmp_path):
    """64 pixels are shown three times as large; input once, then truth and prediction of each task."""
    semseg, depth = noise(64, 192), noise(64, 192)
    depth[:, :64] = semseg[:, :64]
    path = tmp_path / "figures" / "round.png"
    save_sheet(path, {"semseg": [semseg], "depth": [depth]})
    drawn = np.asarray(Image.open(path))
    assert drawn.shape == (20 + 4 + 192, 5 * 196 - 4, 3)
    wanted = [semseg[:, :64], semseg[:, 64:128], semseg[:, 128:], depth[:, 64:128], depth[:, 128:]]
    for column, picture in enumerate(wanted):
        cell = drawn[24:, column * 196 :][:, :192]
        np.testing.assert_array_equal(cell, picture.repeat(3, axis=0).repeat(3, axis=1))
        assert (drawn[24:, column * 196 + 192 : column * 196 + 196] == 255).all()


def test_pictures_of_different_sizes_share_columns():
    drawn = np.asarray(sheet(["image", "label"], [[noise(240, 320)] * 2, [noise(300, 200)] * 2, [noise(400, 400)] * 2]))
    assert drawn.shape == (20 + 3 * 4 + 240 + 300 + 400, 2 * 404 - 4, 3)
    np.testing.assert_array_equal(drawn[24:264, 40:360], noise(240, 320))  # in the middle of its cell
    assert (drawn[24:264, :40] == 255).all()
    np.testing.assert_array_equal(drawn[268:568, 404 + 100 : 404 + 300], noise(300, 200))
    np.testing.assert_array_equal(drawn[572:, 404:], noise(400, 400))


@pytest.mark.parametrize(("size", "shown"), [((500, 375), (400, 300)), ((1000, 4), (400, 2)), ((20, 10), (200, 100))])
def test_pictures_are_brought_to_a_size_that_can_be_seen(size, shown):
    drawn = np.asarray(sheet(["image"], [[np.zeros((*size, 3), np.uint8)]]))
    black = (drawn[24:] == 0).all(-1)
    assert (black.any(1).sum(), black.any(0).sum()) == shown


def test_legend_breaks_its_lines_and_shows_each_colour():
    colours = {f"class number {i}": (i, 0, 200) for i in range(30)}
    plain = sheet(["image"] * 2, [[noise(200, 200)] * 2])
    drawn = sheet(["image"] * 2, [[noise(200, 200)] * 2], legend={"semseg": colours, "parts": {"x": (9, 9, 9)}})
    assert drawn.width == plain.width
    added = np.asarray(drawn)[plain.height :]
    assert (len(added) - 4) % 20 == 0
    assert len(added) > 4 * 20
    for colour in (*colours.values(), (9, 9, 9)):
        assert (added == colour).all(-1).sum() >= 100


def test_a_title_stays_in_its_column():
    titles, blank = ["x" * 500, ""], ["", ""]
    rows = [[np.full((100, 100, 3), 7, np.uint8)] * 2]
    long, none = (np.asarray(sheet(t, rows)) for t in (titles, blank))
    np.testing.assert_array_equal(long[:, 200:], none[:, 200:])
    assert (long[:, :200] != none[:, :200]).any()


def test_strips_are_replaced_as_a_whole(tmp_path, monkeypatch):
    path = tmp_path / "latest.npz"
    save_strips(path, 1, {"depth": [noise(10, 30)]})
    before = path.read_bytes()

    def half(file, **arrays):
        file.write(b"half")
        assert path.read_bytes() == before
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", half)
    with pytest.raises(OSError, match="No space left"):
        save_strips(path, 2, {"depth": [noise(10, 30)]})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_strips_are_kept_as_they_are_and_large_ones_shrunk(tmp_path):
    small, large = noise(10, 30), np.concatenate([np.full((500, 375, 3), i * 50, np.uint8) for i in range(3)], axis=1)
    path = tmp_path / "figures" / "latest.npz"
    save_strips(path, 7, {"semseg": [small, small], "day/depth": [large, large]})
    with np.load(path, allow_pickle=False) as saved:
        assert sorted(saved.files) == ["0/day/depth", "0/semseg", "1/day/depth", "1/semseg", "round"]
        assert saved["round"] == 7
        np.testing.assert_array_equal(saved["1/semseg"], small)
        assert saved["0/day/depth"].shape == (400, 900, 3)
        for i in range(3):
            assert (saved["0/day/depth"][:, 300 * i : 300 * (i + 1)] == i * 50).all()
