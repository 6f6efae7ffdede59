import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from fedmtl.aggregation import DARE, DEA, UploadTransform
from fedmtl.delta_m import Primary
from fedmtl.diagnostics import WarningSigns

PRIMARY = {"semseg": Primary("mIoU", True), "depth": Primary("RMSE", False)}
TASKS = {"semseg": ["semseg"], "depth": ["depth"], "both": ["semseg", "depth"]}

Row = dict[str, Any]


def healthy(rounds: int, *, noise: float, seed: int, eval_every: int = 1, every: int = 1) -> list[Row]:
    """A run that learns fast, then levels off, and whose numbers scatter by a relative `noise`."""
    rng = np.random.default_rng(seed)

    def about(value: float) -> float:
        return float(value * math.exp(noise * rng.normal()))

    rows = []
    for t in range(1, rounds + 1):
        late = 1 - math.exp(-8 * t / rounds)
        warm = min(1.0, t / (0.2 * rounds))
        row: Row = {"round": t, "server/refused": 0}
        for client, tasks in TASKS.items():
            row[f"train/{client}/loss"] = about(3 - 2 * late)
            row |= {f"train/{client}/{task}": about(2 - 1.5 * late) for task in tasks}
            if t % every == 0:
                row[f"diag/norm/{client}"] = about(warm * (1.1 - t / rounds))
                row[f"diag/kept/{client}"], row[f"diag/kept_energy/{client}"] = 0.2, about(0.6)
        if t % every == 0:
            row["diag/step"] = about(1e-3 * warm * (1.1 - t / rounds))
        if t % eval_every == 0 or t == rounds:
            row["val/semseg/mIoU"] = about(2 + 16 * late)
            row["val/depth/RMSE"] = about(1.5 - 0.7 * late)
        rows.append(row)
    return rows


def warnings(
    rows: Sequence[Mapping[str, Any]],
    refused: Mapping[int, Sequence[str]] | None = None,
    upload: Sequence[UploadTransform] = (DEA(),),
) -> list[tuple[int, str]]:
    """Round and text of each warning."""
    signs = WarningSigns(PRIMARY, TASKS, upload)
    return [(row["round"], text) for row in rows for text in signs.look(row, (refused or {}).get(row["round"], ()))]


def spoil(rows: list[Row], key: str, values: Mapping[int, Any]) -> list[Row]:
    """The rows with one number replaced in some rounds."""
    return [row | ({key: values[row["round"]]} if row["round"] in values else {}) for row in rows]


@pytest.mark.parametrize("noise", [0.0, 0.005, 0.02, 0.05, 0.1])
@pytest.mark.parametrize(("rounds", "eval_every", "every"), [(6, 1, 1), (24, 4, 10), (24, 1, 1), (100, 4, 10)])
def test_healthy_runs_raise_nothing(noise: float, rounds: int, eval_every: int, every: int) -> None:
    for seed in range(20):
        assert warnings(healthy(rounds, noise=noise, seed=seed, eval_every=eval_every, every=every)) == []


def test_healthy_runs_of_many_clients_raise_nothing() -> None:
    rows = healthy(50, noise=0.05, seed=0)
    means = [{"diag/norm": r["diag/norm/depth"], "diag/kept": 0.2, "diag/kept_energy": 0.6} for r in rows]
    own = [{k: v for k, v in row.items() if not k.startswith("diag")} for row in rows]
    assert warnings([a | b for a, b in zip(own, means, strict=True)]) == []


def test_long_linear_warm_up_is_no_explosion() -> None:
    rows = healthy(60, noise=0.05, seed=0)
    assert warnings([row | {"diag/norm/depth": row["round"] / 60} for row in rows]) == []


def test_an_update_far_beyond_the_usual() -> None:
    rows = spoil(healthy(20, noise=0.05, seed=0), "diag/norm/depth", {12: 30.0})
    [(round, text)] = warnings(rows)
    assert round == 12
    assert text.startswith("client depth: an update of norm 30,")
    assert "local.optimizer's lr" in text
    assert "\n" not in text


def test_an_update_that_grows_without_end() -> None:
    grown = {t: 0.5 * 1.7 ** (t - 10) for t in range(10, 21)}
    found = warnings(spoil(healthy(20, noise=0.05, seed=0), "diag/norm/depth", grown))
    assert [round for round, _ in found] == [14]
    assert "the norm of updates grew" in found[0][1]


def test_means_stand_for_many_clients() -> None:
    rows = [{"round": t, "diag/norm": 1.0 if t < 6 else 50.0} for t in range(1, 8)]
    assert [(round, text[:22]) for round, text in warnings(rows)] == [(6, "the clients on average")]


def test_a_client_that_is_refused_again_and_again() -> None:
    rows = healthy(20, noise=0.05, seed=0)
    assert warnings(rows, {5: ["depth"], 12: ["depth"], 18: ["depth"]}) == []
    [(round, text)] = warnings(rows, {5: ["depth"], 8: ["depth"], 9: ["depth"], 10: ["depth"]})
    assert round == 8
    assert text.startswith("client depth: 2 of its last 5 updates were not finite")
    assert "local.optimizer's lr" in text


def test_rounds_in_which_a_client_rests_do_not_count() -> None:
    rows = healthy(20, noise=0.0, seed=0)
    for row in rows:
        if row["round"] % 4:
            del row["train/depth/loss"]
    assert [round for round, _ in warnings(rows, {4: ["depth"], 12: ["depth"]})] == [12]


@pytest.mark.parametrize(
    ("kept", "energy", "flat"),
    [
        (0.2, 0.2, True),
        (0.2, 0.235, True),
        (0.2, 0.25, False),
        (0.9, 0.905, True),
        (0.9, 0.95, False),
        (1.0, 1.0, False),
        (0.2, 0.0, False),  # no update at all
    ],
)
def test_flat_magnitudes(kept: float, energy: float, flat: bool) -> None:
    rows = [row | {"diag/kept/depth": kept, "diag/kept_energy/depth": energy} for row in healthy(9, noise=0.02, seed=0)]
    found = warnings(rows)
    assert [round for round, _ in found] == ([1] if flat else [])
    if flat:
        assert "magnitudes are flat" in found[0][1]
        assert "local.epochs" in found[0][1]


@pytest.mark.parametrize(
    ("upload", "warned"),
    [((DEA(select="random"),), 0), ((DARE(drop=0.8),), 0), ((), 0), ((DARE(drop=0.5), DEA(rho=0.4)), 1)],
)
def test_a_mask_that_is_meant_to_be_random_is_not_called_flat(upload: Sequence[UploadTransform], warned: int) -> None:
    rows = [row | {"diag/kept_energy/depth": 0.2} for row in healthy(9, noise=0.02, seed=0)]
    assert len(warnings(rows, upload=upload)) == warned


def test_a_server_that_stands_still() -> None:
    rows = healthy(20, noise=0.05, seed=0)
    assert warnings(spoil(rows, "diag/step", {7: 1e-9})) == []
    [(round, text)] = warnings(spoil(rows, "diag/step", {7: 1e-9, 8: 1e-9, 9: 1e-9}))
    assert round == 8
    assert "stands still" in text


@pytest.mark.parametrize(("task", "metric", "direction"), [("semseg", "mIoU", -1), ("depth", "RMSE", 1)])
def test_a_metric_that_runs_against_its_loss(task: str, metric: str, direction: int) -> None:
    rows = healthy(40, noise=0.002, seed=1)
    rows = [
        row | {f"train/{c}/{k}": 2 - row["round"] / 40 for c in TASKS for k in ("loss", "semseg", "depth")}
        for row in rows
    ]
    reached = rows[24][f"val/{task}/{metric}"]
    worse = {t: reached * (1 + direction * 0.02 * (t - 25)) for t in range(26, 41)}
    [(round, text)] = warnings(spoil(rows, f"val/{task}/{metric}", worse))
    assert 28 <= round <= 30
    assert text.startswith(f"{task}: val {metric} went from")
    assert "local.epochs" in text
    unheard = dict.fromkeys(range(20, 41, 3), None)
    assert warnings(spoil(spoil(rows, f"val/{task}/{metric}", worse), f"train/{task}/loss", unheard)) == [(round, text)]
    better = {t: reached * (1 - direction * 0.02 * (t - 25)) for t in range(26, 41)}
    assert warnings(spoil(rows, f"val/{task}/{metric}", better)) == []


def test_a_metric_that_follows_its_loss_is_no_contradiction() -> None:
    rows = [row | {f"train/{c}/{k}": 1 + row["round"] / 40 for c in TASKS for k in ("loss", "semseg", "depth")}
            for row in healthy(40, noise=0.002, seed=1)]  # fmt: skip
    worse = {t: 15 * 0.98 ** (t - 25) for t in range(25, 41)}
    assert warnings(spoil(rows, "val/semseg/mIoU", worse)) == []


def test_the_loss_of_a_metric_is_that_of_the_clients_with_its_task() -> None:
    rows = healthy(40, noise=0.0, seed=0)
    for row in rows:  # semseg's losses rise, all others fall
        row |= {"train/semseg/loss": 1 + row["round"] / 40, "train/both/semseg": 1 + row["round"] / 40}
        row |= {"train/both/loss": 2 - row["round"] / 40, "train/depth/loss": 20 - row["round"] / 4}
    worse = {t: 15 * 0.98 ** (t - 25) for t in range(25, 41)}
    assert warnings(spoil(rows, "val/semseg/mIoU", worse)) == []


@pytest.mark.parametrize(("key", "bad"), [("val/semseg/mIoU", 5.0), ("val/depth/RMSE", 3.0)])
def test_a_collapse_that_lasts(key: str, bad: float) -> None:
    rows = healthy(20, noise=0.01, seed=0)
    assert warnings(spoil(rows, key, {10: bad})) == []
    found = warnings(spoil(rows, key, {t: bad for t in range(10, 21)}))
    assert [round for round, _ in found] == [11]
    assert "the model falls apart" in found[0][1]
    assert "server.optimizer" in found[0][1]


def test_a_sign_is_raised_again_only_after_it_had_gone() -> None:
    rows = healthy(60, noise=0.0, seed=0)
    flat = "diag/kept_energy/depth"
    assert len(warnings(spoil(rows, flat, dict.fromkeys(range(10, 60), 0.2)))) == 1
    assert len(warnings(spoil(rows, flat, dict.fromkeys([10, 12, 14, 17], 0.2)))) == 1
    assert [round for round, _ in warnings(spoil(rows, flat, dict.fromkeys([10, 14], 0.2)))] == [10, 14]
    both = spoil(spoil(rows, flat, {10: 0.2}), "diag/kept_energy/semseg", {11: 0.2})
    assert [text.split(":")[0] for _, text in warnings(both)] == ["client depth", "client semseg"]


def test_a_resumed_run_repeats_its_warnings() -> None:
    rows = healthy(40, noise=0.03, seed=3, eval_every=2)
    rows = spoil(rows, "diag/norm/depth", {t: 20.0 for t in (11, 21, 22, 30)})
    rows = spoil(rows, "val/semseg/mIoU", {t: 4.0 for t in range(24, 41, 2)})
    refused = {t: ["both"] for t in (15, 18, 19, 26)}
    whole = warnings(rows, refused)
    assert len(whole) >= 4
    for stop in range(41):
        first, second = WarningSigns(PRIMARY, TASKS, [DEA()]), WarningSigns(PRIMARY, TASKS, [DEA()])
        texts = [(r["round"], t) for r in rows[:stop] for t in first.look(r, refused.get(r["round"], ()))]
        state = first.state_dict()
        for row in rows[stop : stop + 3]:  # the interrupted run went on past its checkpoint
            first.look(row)
        second.load_state_dict(state)
        texts += [(r["round"], t) for r in rows[stop:] for t in second.look(r, refused.get(r["round"], ()))]
        assert texts == whole


def test_state_stays_small_and_plain() -> None:
    signs = WarningSigns(PRIMARY, TASKS, [DEA()])
    for row in healthy(300, noise=0.05, seed=0):
        signs.look(row)
    state = signs.state_dict()
    assert max(map(len, state["series"].values())) <= 20
    assert all(type(value) is float for values in state["series"].values() for value in values)


def test_numbers_that_are_not_finite_are_passed_over() -> None:
    rows = healthy(20, noise=0.02, seed=0)
    for key in rows[0]:
        if key not in ("round", "server/refused"):
            for broken in (None, math.nan):
                assert warnings(spoil(rows, key, {7: broken, 8: broken})) == []
