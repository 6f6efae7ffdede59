"""`fedmtl data preview`: draws images with all their labels into one picture, a row an image."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from fedmtl.commands.data.parser import Parser
from fedmtl.commands.data.sources import Chosen, choose, with_choice
from fedmtl.commands.words import say, terminal
from fedmtl.data.source import SPLITS, DataSource, Sample, Split
from fedmtl.data.transforms import MEAN, STD
from fedmtl.errors import UserError
from fedmtl.seeding import numpy_stream
from fedmtl.tasks import SemSeg
from fedmtl.tasks.base import ClassTask, Label
from fedmtl.tracking.base import Picture
from fedmtl.tracking.figures import Colour, sheet


def parser(*, by_file: bool = False) -> Parser:
    """The command's words; with `by_file`, those beside ``--config``."""
    made = Parser("preview", __doc__)
    made.add_argument("--out", type=Path, default=Path("preview.png"), metavar="FILE", help="default: preview.png")
    made.add_argument("--split", choices=SPLITS, default="train", help="default: train")
    made.add_argument("--images", type=int, default=4, metavar="N", help="how many (default: 4)")
    made.add_argument("--seed", type=int, help="draw them at random by this seed; else the first ones are taken")
    made.add_argument("--augmented", action="store_true", help="show what training makes of them")
    return with_choice(made, by_file=by_file)


def main(arguments: list[str]) -> None:
    """Parses the command line and writes the picture; one a data set."""
    own, chosen = choose(parser, arguments)
    if own.images < 1:
        raise UserError(f"--images must be 1 or more, not {own.images}")
    if own.out.suffix.lower() != ".png":
        raise UserError(f"--out: the picture is a PNG, so its name ends in .png, not as {own.out}")
    for name, data in chosen.items():
        out = own.out if len(chosen) == 1 else own.out.with_stem(f"{own.out.stem}_{name}")
        images = pick(data.source, own.split, own.images, own.seed)
        picture = draw(data, own.split, images, own.seed or 0, augmented=own.augmented)
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            picture.save(out)
        except OSError as error:
            raise UserError(f"--out: can't write {out} ({error.strerror})") from error
        say(terminal(), f"{out}: {len(images)} of the {len(data.source.ids(own.split))} {own.split} images of {name}")


def pick(source: DataSource, split: Split, count: int, seed: int | None) -> list[int]:
    """Numbers of the first images of a split, or of random ones, in order."""
    total = len(source.ids(split))
    if seed is None or count >= total:
        return list(range(min(count, total)))
    return sorted(numpy_stream(seed, "preview", split).choice(total, count, replace=False).tolist())


def draw(data: Chosen, split: Split, images: list[int], seed: int, *, augmented: bool) -> Image.Image:
    """A sheet of pictures and labels, with a legend of the classes that occur.

    Args:
        data: the data set and the tasks to be drawn.
        split: where the images are from.
        images: their numbers.
        seed: seed of the augmentation.
        augmented: whether training's transform is applied.
    """
    source = data.source
    rows: list[list[Picture]] = []
    classes = {name: task for name in data.tasks if isinstance(task := source.tasks[name], SemSeg)}
    seen: dict[str, set[int]] = {name: set() for name in classes}
    for index in images:
        sample = source.read(split, index, data.tasks)
        if augmented:
            sample = augment(source, sample, data.tasks, numpy_stream(seed, "preview", split, index))
        rows.append([sample["image"].astype(np.uint8), *(source.tasks[name].draw(sample[name]) for name in data.tasks)])
        for name, numbers in seen.items():
            numbers |= set(np.unique(sample[name]).tolist())
    names = [source.ids(split)[index] for index in images]
    legend = {name: colours(classes[name], numbers) for name, numbers in seen.items()}
    return sheet(["image", *data.tasks], rows, names, legend)


def augment(source: DataSource, sample: Sample, tasks: Sequence[str], rng: np.random.Generator) -> Sample:
    """What training sees of a sample, as a picture and labels again."""
    example = source.train_transform(sample, {name: source.tasks[name] for name in tasks}, rng)
    picture = (example["image"] * STD + MEAN).round().clamp(0, 255).byte()
    return {"image": picture.permute(1, 2, 0).numpy(), **{name: label(example[name]) for name in tasks}}


def label(target: Tensor) -> Label:
    """A target as a label: (1, H, W) to (H, W), (C, H, W) to (H, W, C), (H, W) as it is."""
    if target.ndim == 3:
        target = target[0] if len(target) == 1 else target.permute(1, 2, 0)
    return target.numpy()


def colours(task: ClassTask, numbers: set[int]) -> dict[str, Colour]:
    """Names and colours of classes, 255 being unknown."""
    names = {**dict(enumerate(task.class_names)), 255: "unknown"}
    return {
        names[number]: tuple(task.draw(np.full((1, 1), number, np.uint8))[0, 0].tolist()) for number in sorted(numbers)
    }
