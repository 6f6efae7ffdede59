"""The page: charts, heat maps, pictures; whatever names and files hold, it is shown and never run."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.colors import to_hex

from fedmtl.comparison import charts, compare, pictures
from fedmtl.comparison.interference import PairHistory, pair_history
from fedmtl.comparison.page import page, write
from fedmtl.errors import UserError
from fedmtl.runs import read
from fedmtl.tracking.heat_maps import SIGNED

from .conftest import DEA, diagnose, draw


def test_the_same_runs_give_the_same_page(three: Path) -> None:
    text = page(compare([three], "local"))
    assert text == page(compare([three], "local"))
    assert str(three.parent) not in text
    identifiers = re.findall(r'\bid="([^"]+)"', text)
    assert len(identifiers) == len(set(identifiers))
    assert set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text)) <= {(i, "") for i in identifiers} | {
        ("", i) for i in identifiers
    }


def test_names_are_text(make: Any) -> None:
    evil = "<img src=x onerror=alert(1)>\"'&$x^2$"
    primary = {evil: {"metric": "</script><b>", "higher_is_better": True, "protocol": ""}}
    paths = []
    for i in (1, 2):
        path = make(
            evil + str(i), {evil: [1.0, 2.0]}, primary=primary, recorded=1.0, baseline=evil, share=evil + str(i)
        )
        diagnose(path, 0.5, [evil, "b"])
        paths.append(path)
    text = page(compare(paths))
    assert "<img src=x" not in text
    assert "</script>" not in text
    assert "&lt;img src=x onerror=alert(1)&gt;" in text
    assert "<script" not in text


def test_a_page_that_cannot_be_written_is_a_users_mistake(three: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--html: .* can't be written: Is a directory"):
        write(tmp_path, compare([three]))


def test_a_page_that_does_not_fit_leaves_the_old_one(make: Any, tmp_path: Path, monkeypatch: Any) -> None:
    path, run = tmp_path / "page.html", make("a", {"depth": [None]})
    write(path, compare([run]))
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match="--html: .* can't be written: No space left"):
        write(path, compare([run]))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["page.html"]


def test_conflict_is_red_as_in_the_trackers_pictures() -> None:
    cells = np.array([[-1.0], [1.0]])
    svg = charts.heat_map(PairHistory(["a ~ b", "a ~ c"], [1], cells), "t", "n", 1.0, signed=True).svg
    red, blue = (to_hex(colormaps[SIGNED](end)) for end in (0.0, 1.0))
    assert (red, blue) == ("#67001f", "#053061")
    assert 0 < svg.index(red) < svg.index(blue)


def test_a_page_of_a_run_without_anything(make: Any) -> None:
    text = page(compare([make("a", {"depth": []}, finished=False)]))
    assert "not evaluated yet: a" in text


def test_radii_are_shares_of_the_best(make: Any) -> None:
    make("a", {"semseg": [40.0], "depth": [0.5], "normals": [20.0]}, share="a")
    found = compare([make("b", {"semseg": [30.0], "depth": [0.4], "normals": [25.0]}, share="b").parent])
    shares = charts.radii(found)
    assert shares == {
        "a": pytest.approx({"semseg": 1.0, "depth": 0.8, "normals": 1.0}),
        "b": pytest.approx({"semseg": 0.75, "depth": 1.0, "normals": 0.8}),
    }


def test_no_radar_for_two_tasks_and_zeros_do_no_harm(make: Any) -> None:
    make("a", {"semseg": [0.0], "depth": [0.0], "normals": [1.0]}, share="a")
    found = compare([make("b", {"semseg": [0.0], "depth": [0.0], "normals": [1.0]}, share="b").parent])
    assert charts.radii(found) == {name: {"semseg": 1.0, "depth": 1.0, "normals": 1.0} for name in "ab"}
    assert charts.radar(found) is not None
    make("c", {"semseg": [1.0], "depth": [1.0]}, share="c")
    assert (
        charts.radar(compare([make("d", {"semseg": [1.0], "depth": [1.0]}, share="d"), found.groups[0].runs[0].path]))
        is None
    )


def test_pairs_are_means_over_seeds(three: Path) -> None:
    dea = compare([three]).groups[0]
    history = pair_history(dea, "cosine")
    assert history.pairs == ["semseg ~ depth", "semseg ~ normals", "depth ~ normals"]
    assert history.rounds == [1, 3]
    np.testing.assert_allclose(history.values, np.tile([0.2, 0.4], (3, 1)))
    assert pair_history(dea, "gone") is None


def test_many_clients_are_taken_together_by_their_tasks(make: Any) -> None:
    path = make("a", {"depth": [1.0]})
    clients = [f"{task}_{i}" for i in range(4) for task in ("depth", "semseg")]
    diagnose(path, 0.25, clients)
    rows = ", ".join(f'{{"client": "{name}", "tasks": ["{name[:-2]}"]}}' for name in clients)
    (path / "federation.json").write_text(f"[{rows}]")
    history = pair_history(compare([path]).groups[0], "cosine")
    assert sorted(history.pairs) == ["depth ~ depth", "depth ~ semseg", "semseg ~ semseg"]
    np.testing.assert_allclose(history.values, np.tile([0.25, 0.5], (3, 1)))


def test_a_task_of_two_data_sets_is_two_among_many_clients(make: Any) -> None:
    path = make("a", {"depth": [1.0]})
    data = {f"c{i}": "pascal" if i < 4 else "nyud" for i in range(8)}
    diagnose(path, 0.25, list(data))
    (path / "federation.json").write_text(
        json.dumps([{"client": name, "data": one, "tasks": ["semseg", "parts"]} for name, one in data.items()])
    )
    history = pair_history(compare([path]).groups[0], "cosine")
    pascal, nyud = (f"{one}_semseg+{one}_parts" for one in ("pascal", "nyud"))
    assert sorted(history.pairs) == [f"{nyud} ~ {nyud}", f"{nyud} ~ {pascal}", f"{pascal} ~ {pascal}"]


@pytest.mark.parametrize(
    "pairs", ["3", "[]", '{"cosine": 3}', '{"cosine": [[1], 2]}', '{"cosine": [[1, null], [null, 1]]}']
)
def test_strange_diagnostics_are_passed_over(pairs: str, make: Any) -> None:
    path = make("a", {"depth": [1.0]})
    (path / "diagnostics.jsonl").write_text(f'{{"round": 1, "clients": ["a", "b"], "pairs": {pairs}}}\n{{"round": 2}}')
    assert pair_history(compare([path]).groups[0], "cosine") is None


def test_pictures_are_those_of_one_seed_at_the_same_inputs(three: Path) -> None:
    comparison = compare([three])
    scenes, says = pictures.scenes(comparison)
    assert says == ["dea_s0, round 3", "fedavg_s0, round 3", "local_s0, round 3"]
    assert [scene.name for scene in scenes] == ["image 1", "image 2"]
    assert [row.task for row in scenes[0].rows] == ["semseg", "depth"]
    assert all(uri.startswith("data:image/png;base64,") for row in scenes[0].rows for uri in row.predictions)
    draw(three / "fedavg_s0", 7, image=55)
    scenes, _ = pictures.scenes(comparison)
    assert [uri is None for uri in scenes[0].rows[0].predictions] == [False, True, False], "another input"


def test_a_group_without_pictures_of_that_seed_shows_another(three: Path) -> None:
    (three / "dea_s0" / "figures" / "latest.npz").unlink()
    _, says = pictures.scenes(compare([three]))
    assert says == ["dea_s1, round 3", "fedavg_s1, round 3", "local_s1, round 3"]


def test_files_that_are_no_pictures_are_passed_over(make: Any, tmp_path: Path) -> None:
    path = make("a", {"depth": [1.0]})
    draw(path, 3)
    whole = (path / "figures" / "latest.npz").read_bytes()
    (path / "figures" / "latest.npz").write_bytes(whole[: len(whole) // 2])
    assert pictures.strips(read(path)) == (0, {})
    (path / "figures" / "latest.npz").write_text("no archive")
    assert pictures.strips(read(path)) == (0, {})
    np.savez(path / "figures" / "latest.npz", round=np.asarray(1), **{"0/depth": np.array([{}], dtype=object)})
    assert pictures.strips(read(path)) == (0, {}), "never unpickled"
    wrong = {"0/a": np.zeros((2, 4, 3), np.uint8), "x/b": np.zeros((2, 6, 3), np.uint8), "0/c": np.zeros((2, 6, 3))}
    np.savez(path / "figures" / "latest.npz", round=np.asarray(1), **wrong)
    assert pictures.strips(read(path)) == (1, {})


@pytest.mark.parametrize(
    ("mark", "at", "value"),
    [(b"PK\1\2", 8, 1), (b"PK\1\2", 10, 99), (b"PK\3\4", 60, 255)],
    ids=["encrypted", "packed by an unknown method", "damaged inside"],
)
def test_damaged_archives_are_passed_over(mark: bytes, at: int, value: int, make: Any) -> None:
    path = make("a", {"depth": [1.0]})
    draw(path, 3)
    file = path / "figures" / "latest.npz"
    whole = bytearray(file.read_bytes())
    place = whole.index(mark) + at
    whole[place : place + (1 if value < 255 else 20)] = bytes([value]) * (1 if value < 255 else 20)
    file.write_bytes(whole)
    assert pictures.strips(read(path)) == (0, {})


def test_pictures_outside_of_the_runs_folder_are_not_read(make: Any) -> None:
    inside, outside = make("a", {"depth": [1.0]}), make("b", {"depth": [1.0]}, upload=DEA)
    draw(outside, 3)
    (inside / "figures").symlink_to(outside / "figures")
    assert pictures.strips(read(inside)) == (0, {})
    assert pictures.strips(read(outside))[0] == 3
