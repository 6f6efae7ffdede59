from pathlib import Path

import pytest
import yaml

import fedmtl.aggregation
import fedmtl.algorithms
import fedmtl.server  # noqa: F401, a run has imported what its configuration names
from fedmtl.tracking.method import columns, short, tags

METHODS = Path(__file__).parents[2] / "experiments" / "methods"
BASE = {
    "data": {"class_path": "fedmtl.data.Scenes", "init_args": {"size": 32}},
    "clients": [{"tasks": ["semseg", "edge"], "count": 2}, {"tasks": ["depth"], "count": 1}],
    "model": {"class_path": "fedmtl.models.UnifiedModel", "init_args": {"backbone": "convnext_atto", "channels": 8}},
    "local": {"class_path": "fedmtl.client.LocalTraining", "init_args": {"epochs": 1, "algorithm": None}},
    "upload": None,
    "server": {"class_path": "fedmtl.server.Server", "init_args": {"aggregator": None, "optimizer": None}},
    "share": "model",
}


def test_columns_of_plain_fedavg():
    assert columns(BASE) == {
        "method": "FedAvg",
        "method/algorithm": "FedAvg",
        "method/upload": "everything",
        "method/aggregator": "WeightedMean",
        "method/optimizer": "SGD(lr=1)",
        "method/share": "model",
        "method/data": "Scenes",
        "method/tasks": "semseg, edge, depth",
        "method/clients": 3,
        "method/backbone": "convnext_atto",
    }
    assert tags(BASE) == ["FedAvg", "Scenes"]


@pytest.mark.parametrize(
    ("file", "method", "names"),
    [
        ("fedavg", "FedAvg", ["FedAvg"]),
        ("dea", "FedAvg + DEA(rho=0.2)", ["FedAvg", "DEA"]),
        ("overlap", "FedAvg + DEA(rho=0.2, rescale=overlap)", ["FedAvg", "DEA"]),
        ("dea_layer", None, ["FedAvg", "DEA"]),
        ("dare", "FedAvg + DARE(drop=0.8)", ["FedAvg", "DARE"]),
        ("cagrad", "FedAvg + CAGrad(c=0.4)", ["FedAvg", "CAGrad"]),
        ("matfl", None, ["FedAvg", "MaTFL"]),
        ("scaffold", None, ["Scaffold"]),
        ("local", "alone", ["alone"]),
        ("fedper", "FedAvg, own heads", ["FedAvg"]),
        ("fedadam", None, ["FedAvg", "FedAdam"]),
    ],
)
def test_methods_of_the_suite(file, method, names):
    """Those that share all but one piece are still told apart."""
    config = {**BASE, **yaml.safe_load((METHODS / f"{file}.yaml").read_text())}
    assert method in (None, columns(config)["method"])
    assert tags(config) == [*names, "Scenes"]


def test_methods_have_names_of_their_own():
    """But for those that differ in data or in what is measured only."""
    named = {}
    for path in sorted(METHODS.glob("*.yaml")):
        config = {**BASE, **yaml.safe_load(path.read_text())}
        named.setdefault(columns(config)["method"], []).append(path.stem)
    assert [names for names in named.values() if len(names) > 1] == [
        ["central_single", "local"],
        ["diagnosed", "fedavg"],
    ]
    assert all(len(name) < 120 for name in named)


def test_arguments_as_by_default_are_left_out_also_in_lists():
    adam = {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.01, "betas": [0.9, 0.999], "eps": 1e-3}}
    assert short(adam) == "Adam(lr=0.01, eps=0.001)"


def test_rho_is_a_column_where_it_is_one_number():
    dea = {"class_path": "fedmtl.aggregation.DEA", "init_args": {"rho": 0.3}}
    assert columns({**BASE, "upload": [dea]})["method/rho"] == 0.3
    energy = {"class_path": "fedmtl.aggregation.EnergyRho", "init_args": {"energy": 0.8}}
    found = columns({**BASE, "upload": [{**dea, "init_args": {"rho": energy}}]})
    assert found["method/upload"] == "DEA(rho=EnergyRho(energy=0.8))"
    assert "method/rho" not in found


def test_several_data_sets_and_long_names():
    scenes = BASE["data"]
    config = {**BASE, "data": {"day": scenes, "night": {"class_path": "mine." + "N" * 80}}}
    assert columns(config)["method/data"] == "Scenes, " + "N" * 80
    assert tags(config) == ["FedAvg", "Scenes", "N" * 64]


def test_a_class_that_nobody_has_imported_is_not_imported():
    assert short({"class_path": "no_such_module.Odd", "init_args": {"a": 1, "b": 2}}) == "Odd(a=1)"
