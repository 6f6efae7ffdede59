"""Predictions of tasks whose labels are classes, as label maps with names, for trackers that can show these."""

from collections.abc import Mapping, Sequence

import numpy as np

from fedmtl.data import View
from fedmtl.tasks.base import ClassTask, Label
from fedmtl.tracking.base import Segmented


def segmentations(
    view: View, positions: Sequence[int], predictions: Mapping[str, Sequence[Label]]
) -> dict[str, list[Segmented]]:
    """Image, truth and prediction by task, for the tasks that predict classes; saliency gives a probability.

    Args:
        view: the validation images.
        positions: which of them.
        predictions: label arrays by task, one an image, at its own size.
    """
    tasks = {
        name: task
        for name, labels in predictions.items()
        if isinstance(task := view.tasks[name], ClassTask) and all(label.dtype.kind in "iu" for label in labels)
    }
    found: dict[str, list[Segmented]] = {name: [] for name in tasks}
    for i, position in enumerate(positions if tasks else ()):
        sample = view.sample(position)
        image = np.asarray(sample["image"], dtype=np.uint8)
        for name, task in tasks.items():
            truth, prediction = (np.asarray(label, np.uint8) for label in (sample[name], predictions[name][i]))
            found[name].append(Segmented(image, truth, prediction, task.class_names))
    return found
