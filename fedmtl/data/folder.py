"""Your own data: a folder of images, one of labels a task, and a dataset.yaml that says how to read them."""

from collections.abc import Sequence
from pathlib import Path

from fedmtl.data.description import Splits, meant, read_description
from fedmtl.data.files import Cache, FileSource, Format
from fedmtl.data.label_files import SUFFIXES, Files, Labels
from fedmtl.data.source import SPLITS, Split
from fedmtl.data.transforms import TrainTransform, ValTransform
from fedmtl.errors import UserError
from fedmtl.seeding import numpy_stream

DESCRIPTION = "dataset.yaml"


class Folder(FileSource):
    """A data set of one's own: ``images/``, a folder of labels a task, and ``dataset.yaml`` (see docs/data.md).

    An image's name is its path below ``images/`` without suffix; its labels lie under the same name in the folders
    of the tasks. Images may differ in size and kind of file.

    Args:
        root: the folder with all this.
        crop: height and width of training crops, and the least size of padded validation images.
        scale: see `TrainTransform`, like the next three.
        max_class_share: see `TrainTransform`.
        flip: see `TrainTransform`.
        photometric: see `TrainTransform`.
        longest: see `ValTransform`.
        cache: where decoded files are kept, ``none``, ``memory`` or ``disk``; see `FileSource`.

    Raises:
        UserError: a mistake in dataset.yaml, or files that it speaks of are not there.
        ValueError: an option of the transforms is out of its range.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        crop: tuple[int, int] = (512, 512),
        scale: tuple[float, float] | None = (0.5, 2.0),
        max_class_share: float = 0.75,
        flip: float = 0.5,
        photometric: bool = True,
        longest: int | None = None,
        cache: Cache = "none",
    ) -> None:
        root = Path(root).expanduser()
        if not root.is_dir():
            raise UserError(f"root: there is no folder {root}; it must hold {DESCRIPTION} and images/")
        description = read_description(root / DESCRIPTION)
        self.name = description.name
        self._kinds: dict[str, Files] = {"image": description.images, **description.labels}
        self._found = {what: files.find(root) for what, files in self._kinds.items()}
        names = sorted(self._found["image"])
        if not names:
            raise UserError(f"{root / description.images.folder}: found no image, expected e.g. {', '.join(SUFFIXES)}")
        for task in description.labels:
            if not self._found[task].keys() & set(names):
                wanted = root / self._kinds[task].path(names[0])
                raise UserError(f"{root / DESCRIPTION}, task {task}: no image has a label, expected e.g. {wanted}")
        super().__init__(
            root=root,
            tasks=description.tasks,
            formats={what: Format(files.file, files.decode) for what, files in self._kinds.items()},
            ids=split_names(root, names, description.splits),
            cache=cache,
        )
        self.train_transform = TrainTransform(
            crop=crop, scale=scale, max_class_share=max_class_share, flip=flip, photometric=photometric
        )
        self.val_transform = ValTransform(size=crop, longest=longest)

    @classmethod
    def recognises(cls, root: str | Path) -> bool:
        """Whether a folder is such a data set."""
        return (Path(root).expanduser() / DESCRIPTION).is_file()

    def lacks(self, task: str) -> str:
        """Why there is no such task here, for messages."""
        known = ", ".join(self.tasks)
        return f"{self.root / DESCRIPTION}: there is no task {task!r}{meant(task, self.tasks)}; it has {known}"

    def has_label(self, split: Split, index: int, task: str) -> bool:
        """Whether an image has a label; that of a task which is not optional is taken to be there."""
        form = self._kinds[task]
        return not (isinstance(form, Labels) and form.optional) or self.ids(split)[index] in self._found[task]

    def files(self, split: Split, index: int, what: str) -> list[Path]:
        """The file that the image or label number `index` is decoded from."""
        name = self.ids(split)[index]
        return [self.root / (self._found[what].get(name) or self._kinds[what].path(name))]

    def missing(self, split: Split, what: str) -> list[str]:
        """Files of a split that were not there when the folder was listed."""
        names = self.ids(split)
        lacking = [i for i, name in enumerate(names) if name not in self._found[what]]
        return [
            str(self.files(split, i, what)[0]) for i in lacking if what == "image" or self.has_label(split, i, what)
        ]

    def require(self, split: Split, what: str) -> None:
        """See `FileSource.require`."""
        try:
            super().require(split, what)
        except UserError as error:
            raise UserError(f"{error}, or say optional: true for {what} in {DESCRIPTION}") from error

    def recipe(self, what: str) -> str:
        """What tells apart decoded forms of one file, for the cache."""
        return f"{super().recipe(what)} {self._kinds[what]!r}"


def split_names(root: Path, names: Sequence[str], splits: Splits) -> dict[Split, list[str]]:
    """Names of the images of each split.

    Without a word about it: train.txt and val.txt if they are there, else the folders train and val below images,
    else a random fifth validates.

    Args:
        root: the data set's folder.
        names: all images, sorted.
        splits: what dataset.yaml says.

    Raises:
        UserError: a list or folder is not there, a split is empty, or an image is in both.
    """
    where = f"{root / DESCRIPTION}, splits"
    train, val = splits.train, splits.val
    if val is None and splits.seed is None and splits.by is None:
        train, val = _usual(root, names)
    if isinstance(val, str):
        validate = _listed(root, names, val)
        kept = set(validate)
        rest = [name for name in names if name not in kept]
        ids: dict[Split, list[str]] = {"train": rest if train is None else _listed(root, names, train), "val": validate}
    else:
        ids = _drawn(names, 0.2 if val is None else val, splits.seed or 0, by_folder=splits.by == "folder")
    both = set(ids["train"]) & set(ids["val"])
    if both:
        raise UserError(f"{where}: {min(both)} is in train and in val; an image may be in one only")
    for split in SPLITS:
        if not ids[split]:
            raise UserError(f"{where}: no image is left for {split}")
    return ids


def _usual(root: Path, names: Sequence[str]) -> tuple[str | None, str | None]:
    """Lists or folders of the usual names."""
    there = [split for split in SPLITS if (root / f"{split}.txt").is_file()]
    if len(there) == 1:
        lacking = "val" if there == ["train"] else "train"
        raise UserError(f"{root / lacking}.txt: no such file beside {there[0]}.txt; add it, or give splits")
    if there:
        return "train.txt", "val.txt"
    tops = {name.partition("/")[0] for name in names if "/" in name}
    return ("train", "val") if tops.issuperset(SPLITS) else (None, None)


def _drawn(names: Sequence[str], share: float, seed: int, *, by_folder: bool) -> dict[Split, list[str]]:
    """A share of the images, or of the folders just below images, validates; at least one."""
    group = {name: name.partition("/")[0] if by_folder else name for name in names}
    groups = sorted(set(group.values()))
    count = min(max(1, round(share * len(groups))), len(groups) - 1)
    order = numpy_stream(seed, "splits").permutation(len(groups))
    chosen = {groups[i] for i in order[:count]}
    return {
        "train": [name for name in names if group[name] not in chosen],
        "val": [name for name in names if group[name] in chosen],
    }


def _listed(root: Path, names: Sequence[str], listed: str) -> list[str]:
    """The names in a list below the root, or all that are in a folder below images."""
    path = root / listed
    if not path.is_file():
        inside = [name for name in names if name.startswith(f"{listed.rstrip('/')}/")]
        if not inside:
            raise UserError(f"{root / DESCRIPTION}, splits: {listed} is neither a list {path} nor a folder of images")
        return inside
    try:
        lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    except OSError as error:
        raise UserError(f"{path}: cannot read the list of names ({error.strerror})") from error
    found: dict[str, int] = {}
    known = set(names)
    for number, line in enumerate(lines, start=1):
        name = line.strip()
        if name not in known and name.lower().endswith(SUFFIXES):
            name = name.rpartition(".")[0]
        if not name:
            continue
        if name not in known:
            raise UserError(f"{path}, line {number}: there is no image {name[:80]!r}{meant(name, names)}")
        if name in found:
            raise UserError(f"{path}, line {number}: {name} is listed a second time, after line {found[name]}")
        found[name] = number
    return list(found)
