"""dataset.yaml: every mistake in it is named in one line with its task and key; tasks may be of one's own class."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedmtl.data.description import read_description
from fedmtl.data.folder import Folder
from fedmtl.errors import UserError

from .folder_files import GREY, label, make_folder

CLASSES = GREY % 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"dataset\.yaml: must be keys and values, not None"),
        ("- a", r"dataset\.yaml: must be keys and values, not \['a'\]"),
        ("tasks: {", r"dataset\.yaml: is not YAML \(.*\)"),
        (b"\xff\xfe\x00", r"dataset\.yaml: is not YAML"),
        (
            "tasks: !!python/object/apply:os.getcwd []",
            r"dataset\.yaml: is not YAML \(could not determine a constructor",
        ),
        ("tasks: {edge: {}, edge: {}}", r"dataset\.yaml: is not YAML \(the key edge is there twice"),
        ("name: x", r"dataset\.yaml: needs the key tasks"),
        ("tasks: {}", r"dataset\.yaml: needs the key tasks"),
        ("tasks: [edge]", r"dataset\.yaml: tasks must be a mapping of words, not \['edge'\]"),
        ("task: {edge: {}}", r"dataset\.yaml: there is no key 'task', did you mean 'tasks'\?"),
        ("colour: 1\ntasks: {edge: {}}", r"no key 'colour'; the keys are name, splits, images, tasks"),
        ("name: 7\ntasks: {edge: {}}", r"dataset\.yaml: name must be a word, not 7"),
        ("name: a/b\ntasks: {edge: {}}", r"dataset\.yaml: name must be letters, digits and '_', not 'a/b'"),
        ("tasks: {my edge: {kind: edge}}", r"dataset\.yaml: a task's name must be letters.* not 'my edge'"),
        ("tasks: {1: {kind: edge}}", r"dataset\.yaml: tasks must be a mapping"),
        ("tasks: {image: {kind: edge}}", r"task image: the name is taken by something else; rename"),
        ("tasks: {type: {kind: edge}}", r"task type: the name is taken by something else"),
        ("tasks: {edge: 3}", r"dataset\.yaml, task edge: must be keys and values such as .*, not 3"),
        ("tasks: {roads: {}}", r"task roads: kind must be one of semseg, .* not 'roads'"),
        ("tasks: {roads: {kind: egde}}", r"task roads: kind must be .* not 'egde', did you mean 'edge'\?"),
        ("tasks: {roads: {kind: [edge]}}", r"task roads: kind must be one of .* not \['edge'\]"),
        ("tasks: {edge: {wieght: 2}}", r"task edge: there is no key 'wieght', did you mean 'weight'\?"),
        ("tasks: {edge: {weight: much}}", r"task edge: weight must be a number, not 'much'"),
        ("tasks: {edge: {weight: true}}", r"task edge: weight must be a number, not True"),
        ("tasks: {edge: {weight: .nan}}", r"task edge: weight must be a number, not nan"),
        ("tasks: {edge: {scale: 2}}", r"task edge: there is no key 'scale'"),
        ("tasks: {edge: {optional: 1}}", r"task edge: optional must be a truth value, not 1"),
        ("tasks: {edge: {folder: 1}}", r"task edge: folder must be a word, not 1"),
        ("tasks: {edge: {file: mask}}", r"task edge: file must hold \{name\} once, .* not 'mask'"),
        ("tasks: {edge: {file: '{name}{name}'}}", r"task edge: file must hold \{name\} once"),
        ("tasks: {edge: {file: '{name}/{folder}'}}", r"task edge: file must hold \{name\} once"),
        ("tasks: {semseg: {}}", r"task semseg: needs the key num_classes \(or class_names"),
        ("tasks: {semseg: {num_classes: 1}}", r"task semseg: num_classes must be 2 to 255, not 1"),
        ("tasks: {semseg: {num_classes: 256}}", r"task semseg: num_classes must be 2 to 255, not 256"),
        ("tasks: {semseg: {num_classes: 2.0}}", r"task semseg: num_classes must be a whole number, not 2\.0"),
        ("tasks: {semseg: {class_names: [yes, no]}}", r"class_names must be a list of words, not \[True, False\]"),
        ("tasks: {semseg: {num_classes: 3, class_names: [a, b]}}", r"class_names must have .* 3 classes, not 2"),
        ("tasks: {semseg: {num_classes: 3, colours: [[0, 0, 0]]}}", r"colours must have .* 3 classes, not 1"),
        (
            "tasks: {semseg: {values: [1, 2]}}",
            r"values must be a mapping of whole numbers to whole numbers, not \[1, 2\]",
        ),
        ("tasks: {semseg: {num_classes: 2, values: {1: 2}}}", r"values must lead to classes from 0 to 1, not 2"),
        ("tasks: {semseg: {values: {1: 0, 2: 1}, ignore: [2, 3]}}", r"ignore has the value 2, which is a class's"),
        (
            "tasks: {semseg: {num_classes: 2, values: {99999: 0}}}",
            r"values and ignore must be whole numbers from -32768",
        ),
        ("tasks: {semseg: {num_classes: 2, ignore: [[0, 0, 0]]}}", r"values and ignore must be whole numbers"),
        (
            "tasks: {semseg: {num_classes: 2, ignore: none}}",
            r"ignore must be a whole number or a list of whole numbers or",
        ),
        (
            "tasks: {semseg: {values: {1: 0, 2: 1}, colours: [[0, 0, 0], [1, 1, 1]]}}",
            r"values and colours exclude each",
        ),
        ("tasks: {semseg: {colours: [[0, 0, 0], [1, 1, 256]]}}", r"must be colours .* not \[1, 1, 256\]"),
        ("tasks: {semseg: {colours: [[0, 0, 0], [1, 1]]}}", r"must be colours .* not \[1, 1\]"),
        ("tasks: {semseg: {colours: [[0, 0, 0], [1, 1, 1]], ignore: 0}}", r"must be colours .* not 0"),
        ("tasks: {semseg: {colours: [[0, 0, 0], [1, 1, 1]], ignore: [1, 1, 1]}}", r"have the colour \[1, 1, 1\] twice"),
        ("tasks: {depth: {scale: 0}}", r"task depth: scale must not be 0"),
        ("tasks: {depth: {scale: mm}}", r"task depth: scale must be a number, not 'mm'"),
        ("tasks: {depth: {max_deth: 9}}", r"task depth: there is no key 'max_deth', did you mean 'max_depth'\?"),
        ("tasks: {depth: {invalid: none}}", r"task depth: invalid must be a number or a list of numbers, not 'none'"),
        ("tasks: {edge: {}}\nimages: {range: [1]}", r"images: range must be the values of black and of white"),
        ("tasks: {edge: {}}\nimages: {range: [1, 1]}", r"images: range must be the values of black and of white"),
        ("tasks: {edge: {}}\nimages: {range: auto}", r"images: range must be a list of numbers, not 'auto'"),
        ("tasks: {edge: {}}\nimages: {bands: [1, 2]}", r"images: bands must be one or three numbers from 1"),
        ("tasks: {edge: {}}\nimages: {bands: [0, 1, 2]}", r"images: bands must be one or three numbers from 1"),
        ("tasks: {edge: {}}\nimages: {band: [1]}", r"images: there is no key 'band', did you mean 'bands'\?"),
        ("tasks: {edge: {}}\nimages: pictures", r"images must be a mapping of words, not 'pictures'"),
        (
            "tasks: {x: {class_path: no.such.Task}}",
            r"task x: class_path 'no\.such\.Task' cannot be imported \(ModuleNot",
        ),
        ("tasks: {x: {class_path: Task}}", r"task x: class_path 'Task' cannot be imported"),
        ("tasks: {x: {class_path: 3}}", r"task x: class_path '3' cannot be imported"),
        ("tasks: {x: {class_path: fedmtl.tasks.Dept}}", r"'fedmtl\.tasks\.Dept' cannot be imported \(AttributeError"),
        ("tasks: {x: {class_path: pathlib.Path}}", r"task x: class_path 'pathlib\.Path' is no complete subclass"),
        ("tasks: {x: {class_path: fedmtl.tasks.Task}}", r"'fedmtl\.tasks\.Task' is no complete subclass"),
        ("tasks: {x: {class_path: fedmtl.tasks.Depth, kind: depth}}", r"kind and class_path exclude each other"),
    ],
)
def test_description_is_checked(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = tmp_path / "dataset.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message) as caught:
        read_description(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.sampled_from(["edge", "semseg"]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.integers(0, 9) | st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
KEYS = (
    "num_classes, class_names, values, colours, ignore, scale, offset, invalid, above, weight, optional, file, folder"
)
tasks = st.fixed_dictionaries(
    {"kind": st.sampled_from(["semseg", "depth", "edge", "normals"])}, optional=dict.fromkeys(KEYS.split(", "), values)
)


@given(tasks, values, values)
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_description_is_taken_or_refused_in_one_line(tmp_path: Path, task: Any, splits: Any, images: Any) -> None:
    path = tmp_path / "dataset.yaml"
    path.write_text(yaml.safe_dump({"tasks": {"t": task}, "splits": splits, "images": images}))
    try:
        told = list(read_description(path).tasks)
    except UserError as error:
        told = str(error).splitlines()
        assert told[0].startswith(str(path))
    assert len(told) == 1


def test_numbers_in_exponent_notation(tmp_path: Path) -> None:
    text = "tasks:\n  depth: {scale: 1e-3, weight: 2e0}\n"
    root = make_folder(tmp_path, text, {f"depth/{i}.png": GREY for i in range(3)})
    np.testing.assert_allclose(label(root, "depth"), GREY * 1e-3, rtol=1e-6)


# --- a task of one's own -------------------------------------------------------------------------------------

MINE = """
from fedmtl.tasks import Depth, SemSeg, Task
from fedmtl.tasks.base import masked_mean
from fedmtl.tasks.metrics import RMSE


class Elevation(Depth):
    name = "elevation"

    def __init__(self, *, base, scale: float = 1.0, **options):
        super().__init__(**options)
        self.base, self.scale = base, scale

    def rescale(self, label, factor):
        return label


class Land(SemSeg):
    def __init__(self, **options):
        super().__init__(num_classes=3, **options)


class Flow(Task):
    name, primary, fill = "flow", "RMSE", -1

    def __init__(self, weight: float = 1.0):
        super().__init__(channels=2, weight=weight)

    def loss(self, output, target):
        return masked_mean(output - target, target != -1)

    def metric(self, **options):
        return RMSE()

    def predict(self, output):
        return output.numpy()

    def draw(self, label):
        raise NotImplementedError


class Broken(Depth):
    def __init__(self):
        raise ValueError("no\\nway")
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "mine_of_test_folder.py").write_text(MINE)
    (tmp_path / "broken_of_test_folder.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("mine_of_test_folder", None)


@pytest.mark.usefixtures("mine")
def test_own_tasks(tmp_path: Path) -> None:
    module = "mine_of_test_folder"
    tasks = {
        "up": {"class_path": f"{module}.Elevation", "base": 3, "max_depth": 500, "scale": 0.5},
        "land": {"class_path": f"{module}.Land", "weight": 4},
        "flow": {"class_path": f"{module}.Flow", "scale": 2, "invalid": 9},
    }
    flow = np.arange(24.0).reshape(4, 3, 2)
    files = {f"up/{i}.png": GREY for i in range(3)} | {f"land/{i}.png": CLASSES for i in range(3)}
    source = Folder(make_folder(tmp_path, {"tasks": tasks}, files | {f"flow/{i}.npy": flow for i in range(3)}))
    task: Any = source.tasks["up"]
    assert (task.base, task.max_depth, task.scale) == (3, 500, 0.5)
    assert (source.tasks["land"].channels, source.tasks["land"].weight) == (3, 4)
    sample = source.read("train", 0, list(tasks))
    np.testing.assert_array_equal(sample["up"], GREY * np.float32(0.5))
    np.testing.assert_array_equal(sample["land"], CLASSES)
    np.testing.assert_array_equal(sample["flow"], np.where(flow == 9, -1, 2 * flow))
    assert sample["flow"].dtype == np.float32


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 1), (4, 3, 3), (2, 4, 3)])
def test_labels_of_an_own_task_have_its_channels(tmp_path: Path, shape: tuple[int, ...]) -> None:
    tasks = {"flow": {"class_path": "mine_of_test_folder.Flow"}}
    source = Folder(make_folder(tmp_path, {"tasks": tasks}, {f"flow/{i}.npy": np.zeros(shape) for i in range(3)}))
    with pytest.raises(UserError, match=rf"\.npy: found an array of shape {re.escape(str(shape))}, .* \(H, W, 2\)"):
        source.read("train", 0, ["flow"])


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("{class_path: mine_of_test_folder.Elevation}", "task t: needs the key base"),
        ("{class_path: mine_of_test_folder.Elevation, base: 1, bsae: 2}", "no key 'bsae', did you mean 'base'"),
        ("{class_path: mine_of_test_folder.Land, class_names: [a, b]}", "class_names must have one entry .* 3 classes"),
        ("{class_path: mine_of_test_folder.Broken}", "task t: no way"),
        ("{class_path: broken_of_test_folder.Task}", r"cannot be imported \(ZeroDivisionError: division by zero\)"),
    ],
)
def test_own_tasks_are_checked(tmp_path: Path, task: str, message: str) -> None:
    (tmp_path / "dataset.yaml").write_text(f"tasks: {{t: {task}}}")
    with pytest.raises(UserError, match=message) as caught:
        read_description(tmp_path / "dataset.yaml")
    assert "\n" not in str(caught.value)
