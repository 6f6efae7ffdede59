"""A sweep's file: which runs it stands for, by which commands and names; and that W&B takes ours."""

import importlib.util
import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedmtl.errors import UserError
from fedmtl.sweeps import command
from fedmtl.sweeps.definition import Sweep, read
from fedmtl.sweeps.names import run_names

ROOT = Path(__file__).parents[2]
SHIPPED = sorted((ROOT / "experiments" / "sweeps").glob("*.yaml"))
FIT = {"program": "fedmtl", "command": ["${program}", "fit", "${args}"], "method": "grid"}


def sweep(path: Path, **content: Any) -> Sweep:
    file = path / "s.yaml"
    file.write_text(yaml.safe_dump({**FIT, **content}, sort_keys=False))
    return read(file)


def test_a_grid_is_the_product_last_first(tmp_path: Path) -> None:
    grid = {"a": {"values": [1, 2]}, "b": {"value": "x"}, "c": {"min": 0, "max": 2}}
    found = sweep(tmp_path, parameters=grid).settings()
    assert [tuple(setting.values()) for setting in found] == list(itertools.product([1, 2], ["x"], [0, 1, 2]))


def test_a_grid_has_each_setting_once_and_a_cap(tmp_path: Path) -> None:
    twice = sweep(tmp_path, parameters={"a": {"values": [1, 1.0, True, "1", 2]}}, run_cap=3)
    assert [repr(setting[("a",)]) for setting in twice.settings()] == ["1", "True", "'1'"]
    assert len(twice.settings(2)) == 2
    assert len(twice.settings(9)) == 3


def test_large_ranges_are_drawn_from_and_never_listed(tmp_path: Path) -> None:
    fine = {"distribution": "q_uniform", "min": 0, "max": 1, "q": 1e-12}
    large = {"seed": {"min": 0, "max": 2**32 - 1}, "a": fine}
    search = sweep(tmp_path, method="random", parameters=large, run_cap=2)
    assert len({*run_names(search, search.settings())}) == 2
    for name, value in large.items():
        with pytest.raises(UserError, match=f"parameters.{name}: .* has no end, or more than 10000 values"):
            sweep(tmp_path, parameters={name: value}, run_cap=2).settings()
    product = {name: {"min": 0, "max": 9999} for name in "abcde"}
    with pytest.raises(UserError, match=f"a grid of {10**20} runs; give the file a run_cap"):
        sweep(tmp_path, parameters=product).settings()
    assert [setting[("e",)] for setting in sweep(tmp_path, parameters=product).settings(3)] == [0, 1, 2]


def test_random_search_repeats_and_only_grows(tmp_path: Path) -> None:
    space = {"a": {"min": 0.0, "max": 1.0}, "b": {"values": [1, 2, 3]}}
    search = sweep(tmp_path, method="random", parameters=space, run_cap=30)
    assert search.settings() == search.settings()
    assert search.settings(10) == search.settings()[:10]
    assert search.settings(seed=1) != search.settings()
    reordered = sweep(tmp_path, method="random", parameters=dict(reversed(space.items())), run_cap=30)
    assert [dict(sorted(s.items())) for s in reordered.settings()] == [
        dict(sorted(s.items())) for s in search.settings()
    ]
    few = sweep(tmp_path, method="random", parameters={"b": {"values": [1, 2, 3]}}, run_cap=30)
    assert sorted(setting[("b",)] for setting in few.settings()) == [1, 2, 3]  # none twice


def test_macros_are_filled_in_as_agents_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINE", "here")
    macros = ["env", "interpreter", "program", "args", "args_no_hyphens", "args_no_boolean_flags", "args_json"]
    words = [*(f"${{{name}}}" for name in macros), "${args_json_file}", "x-${envvar:MINE}", 3]
    nested = {"b": {"parameters": {"c": {"value": 1}}}}
    parameters = {"a": {"value": 1e-5}, "t": {"value": True}, "f": {"value": False}, **nested, "l": {"value": ["u v"]}}
    defined = sweep(tmp_path, program="train.py", command=words, parameters=parameters)
    found = command.fill(defined, defined.settings()[0], Path("p.json"))
    plain = ["a=1e-05", "t=True", "f=False", "b={'c': 1}", "l=['u v']"]
    assert found == [
        *(["/usr/bin/env"] if os.name != "nt" else []),
        "python",
        "train.py",
        *(f"--{word}" for word in plain),
        *plain,
        *["--a=1e-05", "--t", "--b={'c': 1}", "--l=['u v']"],
        json.dumps({"a": 1e-5, "t": True, "f": False, "b": {"c": 1}, "l": ["u v"]}),
        "p.json",
        "x-here",
        "3",
    ]


def test_macros_against_wandbs_own(tmp_path: Path) -> None:
    wandb = pytest.importorskip("wandb.sdk.launch.sweeps.utils")
    values = {"a": 0.3, "t": True, "f": False, "b": {"c": [1, "x"]}, "s": "a b", "n": -2}
    theirs = wandb.create_sweep_command_args({"args": {name: {"value": value} for name, value in values.items()}})
    names = ["args", "args_no_hyphens", "args_no_equals", "args_no_boolean_flags", "args_json"]
    for name in [*names, "args_append_hydra", "args_override_hydra"]:
        given = {name: {"value": value} for name, value in values.items()}
        defined = sweep(tmp_path, command=[f"${{{name}}}"], parameters=given)
        assert command.fill(defined, defined.settings()[0], Path("x")) == theirs[name], name


@pytest.mark.parametrize(
    ("words", "rest"),
    [
        (["fedmtl", "fit", "--a=1"], ["--a=1"]),
        (["/usr/bin/env", "fedmtl", "fit"], []),
        (["/usr/bin/env", "python", "-m", "fedmtl", "fit", "x"], ["x"]),
        (["python3.11", "-m", "fedmtl", "fit"], []),
        (["fedmtl", "evaluate"], None),
        (["python", "fedmtl", "fit"], None),
        (["bash", "-c", "fedmtl fit"], None),
        (["torchrun", "-m", "fedmtl", "fit"], None),
        (["./fedmtl", "fit"], None),
    ],
)
def test_which_command_is_fedmtls_own(words: list[str], rest: list[str] | None) -> None:
    assert command.after_fit(words) == rest
    if rest is None:
        assert command.started(words, None) == words
        with pytest.raises(UserError, match="with --trusted-modules only fedmtl fit is started"):
            command.started(words, ["fedmtl"])
    else:
        assert command.started(words, ["fedmtl", "mine"])[1:6] == [
            "-m",
            "fedmtl",
            "fit",
            "--trusted-modules",
            "fedmtl,mine",
        ]


def names(path: Path, **parameters: Any) -> list[str]:
    defined = sweep(path, parameters=parameters)
    return run_names(defined, defined.settings())


def test_names(tmp_path: Path) -> None:
    assert names(tmp_path, seed={"values": [0, 1]}, **{"upload.rho": {"values": [0.2, 1.0]}}) == [
        *("rho_0.2_s0", "rho_1_s0", "rho_0.2_s1", "rho_1_s1")
    ]
    assert names(tmp_path, a={"value": 1}) == ["run"]
    assert names(tmp_path, config={"values": ["x/one.yaml", "x/two.yaml"]}) == ["one", "two"]
    assert names(tmp_path, **{"local.optimizer.lr": {"values": [1]}, "server.optimizer.lr": {"values": [2]}}) == [
        "local.optimizer.lr_1_server.optimizer.lr_2"
    ]
    classes = [[], [{"class_path": "m.DEA", "init_args": {"rho": 0.2}}], [{"class_path": "m.DARE"}]]
    assert names(tmp_path, upload={"values": classes}) == ["upload_none", "upload_DEA", "upload_DARE"]
    twice = [{"class_path": "m.DEA", "init_args": {"rho": rho}} for rho in (0.2, 0.5)]
    assert names(tmp_path, upload={"values": twice}) == ["upload_DEA-rho0.2", "upload_DEA-rho0.5"]


def test_names_never_clash_nor_leave_the_folder(tmp_path: Path) -> None:
    hard = ["a", "A", "a/b", "a b", "..", "../x", "", "logs", "x" * 300, "x" * 301, 0.12341, 0.12342, "ä"]
    found = names(tmp_path, p={"values": hard})
    assert len({name.lower() for name in found}) == len(hard)
    assert all(len(name) < 100 and not set(name) & set("/\\ ") and name not in (".", "..", "logs") for name in found)
    assert names(tmp_path, config={"values": ["logs.yaml"]}) != ["logs"]


def test_more_draws_rename_no_run(tmp_path: Path) -> None:
    search = sweep(tmp_path, method="random", parameters={"a": {"min": 0.12341, "max": 0.12344}}, run_cap=30)
    found = run_names(search, search.settings())
    assert run_names(search, search.settings(2)) == found[:2]
    assert found[0] == "a_0.1234"
    assert len({*found}) == 30


def test_a_name_with_a_hash_may_be_taken_too(tmp_path: Path) -> None:
    first, second = names(tmp_path, p={"values": ["a", "A"]})
    hashed = second.removeprefix("p_")
    assert names(tmp_path, p={"values": [hashed, "a", "A"]})[:2] == [f"p_{hashed}", first]
    assert len({*names(tmp_path, p={"values": [hashed, "a", "A"]})}) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"method": "bayes"}, "method must be grid or random here, not bayes; for bayes: wandb sweep"),
        ({"method": "random"}, "random never ends by itself"),
        ({"parametres": {}}, "parametres is no key of a W&B sweep; did you mean parameters?"),
        ({"scheduler": {"engine": "optuna"}}, "scheduler: schedulers such as Optuna's need W&B itself"),
        ({"parameters": {"a": {"min": 0.0, "max": 1.0}}}, "parameters.a: uniform has no end"),
        ({"command": "fedmtl fit"}, "command must be a list of words"),
        ({"command": ["${arg}"]}, "command: W&B can't fill in ${arg}"),
        ({"command": ["--x=${args}"]}, "command: W&B can't fill in --x=${args}"),
        ({"program": None}, "the file has no program"),
        ({"program": None, "command": None}, "it says nowhere what to run"),
        ({"run_cap": 0}, "run_cap must be a whole number above 0, not 0"),
        ({"metric": "val/x"}, "metric needs a name"),
        ({"metric": {"name": "x", "goal": "up"}}, "metric.goal must be minimize or maximize, not up"),
        ({"name": "../.."}, "can't name a sweep"),
    ],
)
def test_what_is_refused(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    def use() -> None:
        defined = sweep(tmp_path, **{"parameters": {"a": {"values": [1]}}, **content})
        command.fill(defined, defined.settings()[0], Path("x"))

    with pytest.raises(UserError) as error:
        use()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_what_only_wandb_does_is_said(tmp_path: Path) -> None:
    metric = {"name": "val/x", "target": 3}
    early = {"type": "hyperband", "min_iter": 3}
    ignored = sweep(tmp_path, parameters={"a": {"value": 1}}, metric=metric, early_terminate=early).ignored
    assert [line.partition(":")[0] for line in ignored] == ["early_terminate", "metric.target"]


# --- the sweeps of the repository ---------------------------------------------------------------------------


def schema() -> Any:
    """W&B's schema of sweeps, from the package `sweeps` where that is installed."""
    found = importlib.util.find_spec("sweeps")
    if found is None or not found.submodule_search_locations:
        pytest.skip("the package sweeps is not installed")
    (folder,) = found.submodule_search_locations
    return json.loads((Path(folder) / "config" / "schema.json").read_text())


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_wandb_takes_our_sweeps(path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(yaml.safe_load(path.read_text()), schema())


def test_the_schema_can_tell() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"method": "grid", "parameters": {"a[0]": {"value": 1}}}, schema())


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_run_of_our_sweeps_parses(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fedmtl.commands.configuration import experiment_parser, parse, to_dict

    monkeypatch.chdir(ROOT)
    defined = read(path)
    assert defined.name == path.stem
    parser = experiment_parser("fit", None)
    rho = []
    for setting in defined.settings():
        if setting[("seed",)] == 0:
            words = command.after_fit(command.fill(defined, setting, Path("x")))
            assert words is not None
            settings = to_dict(parser, parse(parser, words))
            assert settings["data"]["class_path"] == "fedmtl.data.Scenes"
            rho += [transform["init_args"]["rho"] for transform in settings["upload"]]
            if path.stem != "baseline":
                assert rho[-1] == setting[("upload.rho",)]
    assert len(rho) == {"rho": 8, "rescale": 20, "baseline": 5}[path.stem]


def test_dea_in_the_baseline_sweep_is_that_of_the_methods() -> None:
    (dea,) = [
        v
        for v in yaml.safe_load((ROOT / "experiments/sweeps/baseline.yaml").read_text())["parameters"]["upload"][
            "values"
        ]
        if v
    ]
    assert dea == yaml.safe_load((ROOT / "experiments/methods/dea.yaml").read_text())["upload"]
