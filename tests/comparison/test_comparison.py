"""Seeds grouped, statistics against NumPy, Δm against baselines of every kind, and what can't be compared."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmtl.comparison import compare
from fedmtl.comparison.configs import differences, method
from fedmtl.comparison.groups import grouped, statistic, stem
from fedmtl.errors import UserError
from fedmtl.runs import Run, find, read

from .conftest import DEA, PRIMARY


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=9))
def test_statistics_are_numpys(values: list[float]) -> None:
    found = statistic([None, *values, float("nan")])
    assert found is not None
    assert found.n == len(values)
    assert found.mean == pytest.approx(np.mean(values), abs=1e-6)
    if len(values) == 1:
        assert found.std is None
    else:
        assert found.std == pytest.approx(np.std(values, ddof=1), abs=1e-6)


def test_nothing_has_no_statistic() -> None:
    assert statistic([None, float("nan"), float("inf")]) is None


def test_seeds_of_one_configuration_are_a_group(make: Any) -> None:
    paths = [make("dea_s1", {"depth": [1.0]}, upload=DEA), make("plain_s0", {"depth": [1.0]})]
    paths += [make("dea_s0", {"depth": [1.0]}, upload=DEA, fabric={"threads": 8}, baseline="x", tracker={"a": 1})]
    groups = grouped(find(paths))
    assert [(g.name, [run.name for run in g.runs]) for g in groups] == [
        ("dea", ["dea_s0", "dea_s1"]),
        ("plain", ["plain_s0"]),
    ]


def test_what_changes_the_method_makes_another_group(make: Any) -> None:
    make("a_s0", {"depth": [1.0]})
    make("a_s1", {"depth": [1.0]}, rounds=9)
    runs = find([make("b_s0", {"depth": [1.0]}, upload=DEA).parent])
    assert [g.name for g in grouped(runs)] == ["a_s0", "a_s1", "b"], "names without seed would be the same"


def test_a_seed_that_comes_twice_is_never_averaged_with_itself(make: Any) -> None:
    for name in ("first_s0", "again_s0", "first_s1"):
        make(name, {"depth": [1.0]})
    runs = find([make("third", {"depth": [1.0]}).parent])
    assert {g.name: len(g.runs) for g in grouped(runs)} == {"first": 2, "again": 1, "third": 1}


def test_groups_of_one_name_in_two_folders_are_told_apart(make: Any, tmp_path: Path) -> None:
    one = make("dea_s0", {"depth": [1.0]})
    one.parent.rename(tmp_path / "old")
    groups = grouped(find([tmp_path / "old" / "dea_s0", make("dea_s0", {"depth": [1.0]}, rounds=4)]))
    assert [g.name for g in groups] == ["old/dea_s0", "runs/dea_s0"]


@pytest.mark.parametrize(("name", "expected"), [("a_s0", "a"), ("a_s12", "a"), ("a_s", "a_s"), ("_s1", "_s1")])
def test_stem(name: str, expected: str) -> None:
    assert stem(name) == expected


def test_delta_m_against_the_same_seed(three: Path) -> None:
    found = compare([three], "local")
    for group in found.groups:
        expected = []
        for run in group.runs:
            base = read(three / f"local_s{run.seed}").values(3)
            ours = run.values(3)
            signs = {"semseg": 1, "depth": -1, "normals": -1}
            expected.append(np.mean([100 * signs[t] * (ours[t] - base[t]) / base[t] for t in base]))
        assert found.delta_m(group).mean == pytest.approx(np.mean(expected))
        assert found.delta_m(group).std == pytest.approx(np.std(expected, ddof=1))
    assert [group.name for group in found.groups] == ["dea", "fedavg", "local"]


def test_a_seed_without_its_baseline_is_measured_against_the_mean(make: Any) -> None:
    for seed, value in enumerate((1.0, 3.0)):
        make(f"alone_s{seed}", {"depth": [value]}, share="none")
    make("dea_s1", {"depth": [1.5]})
    found = compare([make("dea_s7", {"depth": [1.5]}).parent], "alone")
    dea = found.groups[1]
    assert [found.changes(run)["depth"] for run in dea.runs] == pytest.approx([50.0, 25.0])


def test_a_single_run_as_baseline_counts_for_all_seeds(three: Path) -> None:
    found = compare([three / "dea_s0", three / "dea_s1"], str(three / "local_s2"))
    base = read(three / "local_s2").values(3)["depth"]
    assert [g.name for g in found.groups] == ["local", "dea"]
    for run in found.groups[1].runs:
        assert found.changes(run)["depth"] == pytest.approx(100 * (base - run.values(3)["depth"]) / base)


def test_a_baseline_is_found_by_a_path_without_seeds(three: Path) -> None:
    found = compare([three / "dea_s0"], str(three / "local"))
    assert found.baseline is not None
    assert [run.name for run in found.baseline.runs] == ["local_s0", "local_s1", "local_s2"]


def test_without_a_baseline_it_is_what_the_runs_recorded(make: Any) -> None:
    make("a_s0", {"depth": [1.0, 0.5]}, recorded=3.0, baseline="alone_s0")
    found = compare([make("a_s1", {"depth": [1.0, 0.4]}, recorded=5.0, baseline="alone_s1").parent])
    assert found.delta_m(found.groups[0]).mean == pytest.approx(4.0)
    assert found.measure == "Δ as the runs recorded it, against alone"
    assert found.notes == []


def test_notes_say_what_to_beware_of(make: Any) -> None:
    make("a", {"depth": [1.0, 0.5]}, recorded=3.0, baseline="alone_s0")
    make("b", {"depth": [1.0]}, finished=False, recorded=3.0, baseline="other", rounds=2)
    data = {"class_path": "fedmtl.data.Scenes", "init_args": {"size": 64}}
    notes = " | ".join(compare([make("c", {"depth": []}, finished=False, data=data).parent]).notes)
    for text in ("not evaluated yet: c", "unequal progress", "the data differ (data.size)"):
        assert text in notes
    assert "no Δm" in compare([make("d", {"depth": [1.0]}, upload=DEA)]).notes[0]


def test_best_takes_the_best_evaluation(make: Any) -> None:
    path = make("a", {"depth": [1.0, 0.2, 0.6]}, finished=False)
    for best, expected in ((True, 0.2), (False, 0.6)):
        found = compare([path], best=best)
        assert found.metric(found.groups[0], "depth").mean == expected


def test_tasks_may_differ(make: Any) -> None:
    make("a", {"depth": [1.0], "semseg": [30.0]})
    found = compare([make("b", {"depth": [0.5], "normals": [20.0]}, upload=DEA).parent], "a")
    a, b = found.groups
    assert list(found.primary) == ["depth", "semseg", "normals"]
    assert found.metric(b, "semseg") is None
    assert found.change(b, "normals") is None
    assert found.change(b, "depth").mean == pytest.approx(50.0)
    assert found.delta_m(b) is None, "over fewer tasks than the baseline's it is another figure"
    assert found.delta_m(a).mean == pytest.approx(0.0)
    assert any(note.startswith("no Δm for b: not every task") for note in found.notes)


def test_more_tasks_than_the_baselines_do_not_count(make: Any) -> None:
    make("a", {"depth": [1.0]})
    found = compare([make("b", {"depth": [0.5], "normals": [20.0]}, upload=DEA).parent], "a")
    assert [found.delta_m(group).mean for group in found.groups] == pytest.approx([0.0, 50.0])
    assert not any("no Δm" in note for note in found.notes)


def test_a_task_that_diverged_is_not_spared(make: Any) -> None:
    make("base", {"depth": [1.0], "semseg": [50.0]}, share="none")
    make("bad", {"depth": [None], "semseg": [51.0]}, upload=DEA)
    found = compare([make("good", {"depth": [1.1], "semseg": [51.0]}).parent], "base")
    shown = {group.name: one.mean if (one := found.delta_m(group)) else None for group in found.groups}
    assert shown == {"bad": None, "base": 0.0, "good": pytest.approx(-4.0)}
    assert list(found.curve(found.groups[0], found.overall)) == []
    assert "no Δm for bad: not every task of the baseline has a finite Δ there" in found.notes


def test_a_run_that_diverged_at_last_does_not_show_what_it_had_before(make: Any) -> None:
    make("base", {"depth": [1.0, 1.0]}, share="none")
    make("bad", {"depth": [0.1, None]}, upload=DEA)
    path = make("good", {"depth": [0.9, 0.9]})
    found = compare([path.parent], "base")
    bad = found.groups[0]
    assert (found.metric(bad, "depth"), found.change(bad, "depth"), found.delta_m(bad)) == (None, None, None)
    assert list(found.curve(bad, found.overall)) == [1]
    assert found.notes == ["no Δm for bad: not every task of the baseline has a finite Δ there"]
    assert compare([path], str(path.parent / "bad")).delta_m(found.groups[2]) is None


def test_a_run_that_diverged_at_last_had_its_baseline(make: Any) -> None:
    path = make("bad", {"depth": [0.1]}, recorded=90.0, baseline="alone", finished=False)
    with open(path / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"round": 2, "val/depth/RMSE": None, "val/depth/delta": None}) + "\n")
    assert compare([path]).notes == ["no Δm for bad: not every task of the baseline has a finite Δ there"]


def test_a_curve_asks_each_run_once_for_its_evaluations(three: Path, monkeypatch: Any) -> None:
    found, asked = compare([three]), []
    monkeypatch.setattr(Run, "evaluated", property(lambda run: asked.append(run.name) or range(1, 101)))
    curve = found.curve(found.groups[0], lambda run, round: float(round))
    assert list(curve) == list(range(1, 101))
    assert asked == ["dea_s0", "dea_s1", "dea_s2"]
    monkeypatch.undo()
    run = found.groups[0].runs[0]
    assert run.evaluated is run.evaluated


def test_a_baseline_that_diverged_gives_no_delta_m(make: Any) -> None:
    make("base", {"depth": [None], "semseg": [50.0]}, share="none")
    found = compare([make("good", {"depth": [1.1], "semseg": [51.0]}).parent], "base")
    assert [found.delta_m(group) for group in found.groups] == [None, None]
    assert found.has_delta_m, "of the other task there is a Δ"


def test_recorded_delta_m_is_over_the_tasks_of_all_against_that_baseline(make: Any) -> None:
    make("one_s0", {"depth": [1.0]}, recorded=9.0, baseline="alone_s0", share="encoder")
    make("other_s0", {"normals": [1.0]}, recorded=7.0, baseline="another_s0", upload=DEA)
    two = make("two_s0", {"depth": [1.0], "semseg": [30.0]}, recorded=-1.0, baseline="alone_s0")
    found = compare([two.parent])
    shown = {group.name: one.mean if (one := found.delta_m(group)) else None for group in found.groups}
    assert shown == {"one": None, "other": 7.0, "two": -1.0}


def test_a_seed_without_a_number_is_told(make: Any) -> None:
    for seed, value in enumerate((50.0, 51.0, None)):
        path = make(f"x_s{seed}", {"semseg": [value], "depth": [1.0]})
    (note,) = [note for note in compare([path.parent]).notes if "(n/N)" in note]
    assert note.endswith("only n of the row's N runs have a finite number there (x)")


def test_unequal_seeds_are_told(make: Any) -> None:
    for name in ("a_s0", "a_s1"):
        make(name, {"depth": [1.0]})
    path = make("b_s0", {"depth": [1.0]}, upload=DEA)
    assert "unequal seeds: the means are not over the same ones (a 0 1, b 0)" in compare([path.parent]).notes
    make("b_s1", {"depth": [1.0]}, upload=DEA)
    assert not any("unequal seeds" in note for note in compare([path.parent]).notes)


def test_recorded_changes_against_different_baselines_have_no_mean(make: Any) -> None:
    make("a_s0", {"depth": [1.0]}, recorded=10.0, baseline="local_s0")
    make("b_s0", {"depth": [1.0]}, recorded=3.0, baseline="local_s0", upload=DEA)
    path = make("a_s1", {"depth": [1.0]}, recorded=-10.0, baseline="fedavg_s1")
    found = compare([path.parent])
    a, b = found.groups
    assert (found.delta_m(a), found.change(a, "depth")) == (None, None)
    assert found.delta_m(b).mean == 3.0
    assert "no Δm for a: its runs recorded it against different baselines" in found.notes
    assert compare([path.parent], "b").delta_m(a).mean == 0.0


def test_a_best_baseline_against_itself_is_nothing_better(make: Any) -> None:
    base = make("base", {"depth": [0.5, 1.0]}, finished=False)
    found = compare([base], "base", best=True)
    assert found.delta_m(found.groups[0]).mean == 0.0


def test_data_of_another_folder_are_other_data(make: Any) -> None:
    for seed in range(2):
        data = {"class_path": "fedmtl.data.Folder", "init_args": {"root": f"/data/{seed}", "cache": f"/{seed}"}}
        path = make(f"x{seed}_s{seed}", {"depth": [1.0]}, data=data)
    found = compare([path.parent])
    assert [group.name for group in found.groups] == ["x0", "x1"]
    assert found.differing == {"data.root": ["/data/0", "/data/1"]}


def test_a_name_of_several_runs_is_no_baseline(make: Any, tmp_path: Path) -> None:
    make("x_s0", {"depth": [1.0]}).parent.rename(tmp_path / "A")
    path = make("x_s0", {"depth": [1.0]}, upload=DEA)
    with pytest.raises(UserError, match=r"--baseline: x_s0 may be any of .*A/x_s0, .*runs/x_s0; give the folder of"):
        compare([tmp_path / "A", path.parent], "x_s0")
    assert compare([tmp_path / "A", path.parent], "A/x_s0").baseline.runs[0].path == tmp_path / "A" / "x_s0"
    assert compare([tmp_path / "A", path.parent], str(path)).baseline.runs[0].path == path
    assert compare([path], "x_s0").baseline.runs[0].path == path


def test_null_metrics_are_no_numbers(make: Any) -> None:
    found = compare([make("a", {"depth": [1.0, None], "semseg": [30.0, 31.0]})])
    assert found.metric(found.groups[0], "depth") is None
    assert found.metric(found.groups[0], "semseg").mean == 31.0


def test_runs_that_measure_otherwise_are_refused(make: Any) -> None:
    a = make("a", {"depth": [1.0]})
    other = PRIMARY | {"depth": {"metric": "RMSE", "higher_is_better": False, "protocol": "by image"}}
    b = make("b", {"depth": [1.0]}, primary=other)
    c = make("c", {"depth": [1.0]}, validation={"scenes": 6})
    with pytest.raises(UserError, match=r"^b can't be compared with a: depth by RMSE .by image. and by RMSE; leave"):
        compare([a, b])
    with pytest.raises(UserError, match="depth was measured on 6 images of scenes and on 5 images of scenes"):
        compare([a, c])
    with pytest.raises(UserError, match="can't be compared"):
        compare([a], str(c))
    assert len(compare([c, make("d", {"semseg": [1.0]})]).groups) == 2, "no task in common"


def test_a_run_that_goes_on_takes_its_metrics_from_those_that_are_done(make: Any) -> None:
    protocol = PRIMARY | {"depth": {"metric": "absRel", "higher_is_better": False, "protocol": "p"}}
    done = make("a", {"depth": [0.3]}, primary=protocol)
    going = make("b", {"depth": [0.2]}, primary=protocol, finished=False)
    with open(going / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"round": 2, "val/depth/RMSE": 9.0, "val/depth/absRel": 0.1}) + "\n")
    found = compare([going, done])
    assert found.metric(found.groups[0], "depth").mean == 0.1


@pytest.mark.parametrize(
    ("baseline", "message"),
    [
        ("gone", r"--baseline: gone is neither a run's folder nor one of these runs \(dea, fedavg, local\)"),
        ("{}", "--baseline: .* holds runs of 3 configurations"),
        ("", "--baseline: .* is neither|--baseline: .* holds|is not the folder of a run"),
    ],
)
def test_a_baseline_that_is_none_is_refused(baseline: str, message: str, three: Path) -> None:
    with pytest.raises(UserError, match=message):
        compare([three], baseline.format(three))


def test_a_baseline_without_an_evaluation_is_refused(make: Any, three: Path) -> None:
    with pytest.raises(UserError, match="new has no evaluation yet"):
        compare([three], str(make("new", {"depth": []}, finished=False)))


def test_differences_are_short(make: Any) -> None:
    cagrad = {"aggregator": {"class_path": "fedmtl.aggregation.CAGrad", "init_args": {"c": 0.4, "flag": False}}}
    runs = [
        read(make("a", {"depth": [1.0]}, upload=DEA)),
        read(make("b", {"depth": [1.0]}, upload=[{**DEA[0], "init_args": {**DEA[0]["init_args"], "rho": 0.2}}])),
        read(make("c", {"depth": [1.0]}, server=cagrad, seed=4)),
    ]
    found = differences([method(run) for run in runs])
    assert found["upload[0].rho"] == ["0.5", "0.2", ""]
    assert found["server.aggregator"] == ["", "", "CAGrad, c 0.4"]
    assert not any("seed" in key or "scope" in key for key in found)


@pytest.mark.parametrize("empty", [[], {}, None])
def test_nothing_is_no_difference_of_its_own(empty: Any, make: Any) -> None:
    runs = [read(make("a", {"depth": [1.0]}, upload=empty)), read(make("b", {"depth": [1.0]}, upload=DEA))]
    found = differences([method(run) for run in runs])
    assert list(found) == ["upload[0]"]
    assert found["upload[0]"][0] == ""
    assert method(read(make("c", {"depth": [1.0]}, upload=None))) == method(runs[0])


def test_a_knot_of_references_is_refused(make: Any) -> None:
    path = make("a", {"depth": [1.0]})
    lines = ["a0: &a0 [x, y]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))]
    (path / "config.yaml").write_text("\n".join(lines))
    with pytest.raises(UserError, match="too large"):
        compare([path])
    (path / "config.yaml").write_text("a: &a [*a, {b: 1}]")
    with pytest.raises(UserError, match="too large"):
        compare([path])
