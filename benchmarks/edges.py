"""Edge evaluation against pyEdgeEval, which has the original matcher: agreement, and CPU time on one core."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fedmtl.boundaries import COARSE_THRESHOLDS, THRESHOLDS, average_precision, boundary_counts, f_measure, thin
from fedmtl.boundaries.suppression import smooth

try:
    from pyEdgeEval.common.binary_label.evaluate_boundaries import evaluate_boundaries_threshold
    from pyEdgeEval.common.metrics import interpolated_max_scores
except ImportError:
    evaluate_boundaries_threshold = None

Array = NDArray[np.float64]
HEADER = (
    f"{'prediction':<11}{'distance':>9} |{'max |dP|':>9}{'|dR|':>6}{'|dF|':>6} |{'odsF':>7}{'theirs':>7}"
    f"{'oisF':>7}{'theirs':>7}{'AP':>7}{'theirs':>7} |{'s/image':>8}{'theirs':>8}{'ratio':>7} |{'coarse':>7}{'time':>6}"
)


def read(root: Path, name: str, size: tuple[int, int] | None) -> tuple[Array, NDArray[np.bool_]]:
    """Brightness 0…1 and true edges of an image, enlarged to `size` if given, with edges a pixel wide again."""
    image = Image.open(root / "images" / f"{name}.png").convert("L")
    edge = Image.open(root / "edge" / f"{name}.png")
    if size:
        image = image.resize(size[::-1], Image.Resampling.BILINEAR)
        edge = edge.resize(size[::-1], Image.Resampling.NEAREST)
    truth = np.asarray(edge) > 0
    return np.asarray(image) / 255, thin(truth.astype(np.uint64)).astype(bool) if size else truth


def gradient(image: Array, truth: NDArray[np.bool_], rng: np.random.Generator) -> Array:
    """Strength of the smoothed image's gradient, as a probability: a poor detector."""
    strength = np.hypot(*np.gradient(smooth(image, 3)))
    return 1 - np.exp(-strength / np.percentile(strength, 90))


def network(image: Array, truth: NDArray[np.bool_], rng: np.random.Generator) -> Array:
    """The true edges, displaced, blurred, and with noise of two scales, as a probability: a good detector."""
    blur = smooth(np.roll(truth, (1, 1), (0, 1)).astype(float), 4)
    noise = [smooth(rng.normal(size=truth.shape), radius) for radius in (14, 7)]
    logits = 7 * blur / max(blur.max(), 1e-9) - 2 + noise[0] / noise[0].std() + 0.7 * noise[1] / noise[1].std()
    return 1 / (1 + np.exp(-logits))


def timed(work: Callable[[], NDArray]) -> tuple[NDArray, float]:
    begin = time.process_time()
    result = work()
    return np.asarray(result), time.process_time() - begin


def theirs(probability: Array, truth: NDArray[np.bool_], distance: float) -> NDArray:
    """Matched true, true, matched predicted and predicted pixels, (4, 99)."""
    return np.stack(evaluate_boundaries_threshold(THRESHOLDS, probability, truth, distance, True, True))


def curve(counts: NDArray) -> tuple[Array, Array, Array]:
    """Precision, recall and F ×100 of (4, ...) counts."""
    recall, precision = counts[0] / np.maximum(counts[1], 1), counts[2] / np.maximum(counts[3], 1)
    return 100 * precision, 100 * recall, 200 * precision * recall / np.maximum(precision + recall, 1e-9)


def interpolated(counts: NDArray) -> tuple[float, float]:
    """Their odsF, interpolated between thresholds, and area under the curve (AUC), ×100."""
    precision, recall, _ = curve(counts)
    recalls, first = np.unique(recall / 100, return_index=True)
    area = np.interp(np.arange(0, 1, 0.01), recalls, precision[first], left=0, right=0).sum() / 100
    return 100 * interpolated_max_scores(THRESHOLDS, recall / 100, precision / 100)[3], area


def row(pairs: list[tuple[Array, NDArray[np.bool_]]], distance: float) -> str:
    """One line of the table."""
    known = [np.ones_like(truth) for _, truth in pairs]
    totals, best, seconds = [np.zeros((3, 99)), np.zeros((3, 19)), np.zeros((4, 99))], [[], []], np.zeros(3)
    for (probability, truth), mask in zip(pairs, known, strict=True):
        work: list[Callable[[], NDArray]] = [
            lambda p=probability, t=truth, k=mask: boundary_counts(p, t, k, max_distance=distance),
            lambda p=probability, t=truth, k=mask: boundary_counts(
                p, t, k, max_distance=distance, thresholds=COARSE_THRESHOLDS
            ),
        ]
        if evaluate_boundaries_threshold:
            work.append(lambda p=probability, t=truth: theirs(p, t, distance))
        for i, step in enumerate(work):
            counts, taken = timed(step)
            totals[i] += counts
            seconds[i] += taken
            if i != 1:
                best[i // 2].append(counts[:, np.argmax(f_measure(counts) if i == 0 else curve(counts)[2])])
    exact, coarse, original = totals
    ods = 100 * f_measure(exact).max()
    ours = [ods, 100 * float(f_measure(sum(best[0]))), 100 * average_precision(exact)]
    gap = f"{100 * f_measure(coarse).max() - ods:>7.2f}{seconds[1] / seconds[0]:>6.2f}"
    own = seconds[0] / len(pairs)
    if not evaluate_boundaries_threshold:
        numbers = "".join(f"{number:>7.2f}{'-':>7}" for number in ours)
        return f"{'-':>9}{'-':>6}{'-':>6} |{numbers} |{own:>8.3f}{'-':>8}{'-':>7} |{gap}"
    own_curve = curve(np.stack([exact[0], exact[2], exact[0], exact[1]]))
    differences = [np.abs(a - b).max() for a, b in zip(own_curve, curve(original), strict=True)]
    their_ods, their_area = interpolated(original)
    others = [their_ods, float(curve(sum(best[1]))[2]), their_area]
    numbers = "".join(f"{a:>7.2f}{b:>7.2f}" for a, b in zip(ours, others, strict=True))
    agreement = "{:>9.2f}{:>6.2f}{:>6.2f}".format(*differences)
    return f"{agreement} |{numbers} |{own:>8.3f}{seconds[2] / len(pairs):>8.2f}{seconds[2] / seconds[0]:>7.0f} |{gap}"


def main() -> None:
    """Print one row per prediction and tolerance."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path, help="folder in the layout of NYUDv2: images, edge, gt_sets/val.txt")
    parser.add_argument("--images", type=int, default=20, help="how many of the val images")
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="enlarge images to this size first")
    options = parser.parse_args()
    names = (options.root / "gt_sets" / "val.txt").read_text().split()[: options.images]
    size = tuple(options.size) if options.size else None
    if not evaluate_boundaries_threshold:
        print(
            "pyEdgeEval is not installed: no comparison. It needs a C++ compiler, and best an environment of its own:"
        )
        print("  python -m venv edges")
        print("  edges/bin/pip install pyEdgeEval scipy scikit-image opencv-python-headless pillow")
        print("  PYTHONPATH=. edges/bin/python", *sys.argv)
    pictures = [read(options.root, name, size) for name in names]
    print(f"{len(names)} images of {' x '.join(map(str, pictures[0][1].shape))}; P, R, F and numbers x 100")
    print("theirs: odsF interpolated between thresholds, AUC; coarse: odsF of 19 thresholds less odsF, share of time")
    print(HEADER)
    for predict in (gradient, network):
        rng = np.random.default_rng(0)
        pairs = [(predict(image, truth, rng), truth) for image, truth in pictures]
        for distance in (0.0075, 0.011):
            print(f"{predict.__name__:<11}{distance:>9} |{row(pairs, distance)}", flush=True)


if __name__ == "__main__":
    main()
