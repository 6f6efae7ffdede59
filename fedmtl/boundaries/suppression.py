"""Non-maximum suppression of a boundary map, as edgesNms does it."""

import numpy as np
from numpy.typing import NDArray


def suppress_non_maxima(probability: NDArray[np.floating]) -> NDArray[np.float64]:
    """Boundary strength, smoothed, and 0 where it is greater a pixel away across the boundary.

    As edgesNms with r = 1, s = 5, m = 1.01 (Dollár and Zitnick 2015): 1 % more is tolerated, and strength fades
    over the image's outer 5 pixels to 0 at the outermost ones.

    Args:
        probability: finite, (H, W).

    Returns:
        Strength, (H, W).
    """
    height, width = probability.shape
    out = np.zeros((height, width))
    if min(height, width) < 3:
        return out
    strength = smooth(probability.astype(np.float64), 1)
    x, y = (part[1:-1, 1:-1] for part in direction_across(strength))
    falling = (x > 0) == (y > 0)  # from top left to bottom right, as y points down
    x, y = np.abs(x), np.abs(y)

    def at(down: int, right: int) -> NDArray[np.float64]:
        return strength[1 + down : height - 1 + down, 1 + right : width - 1 + right]

    kept = np.ones(falling.shape, dtype=bool)
    for step in (-1, 1):  # bilinear between the pixel, the next one in its row, in its column and diagonally
        vertical = np.where(falling, at(step, 0), at(-step, 0))
        diagonal = np.where(falling, at(step, step), at(-step, step))
        ahead = (1 - x) * ((1 - y) * at(0, 0) + y * vertical) + x * ((1 - y) * at(0, step) + y * diagonal)
        kept &= 1.01 * at(0, 0) >= ahead
    out[1:-1, 1:-1] = np.where(kept, at(0, 0), 0)
    margin = min(5, height // 2, width // 2)
    rows, columns = (np.minimum(np.minimum(i, i[::-1]) / margin, 1) for i in (np.arange(height), np.arange(width)))
    return out * rows[:, None] * columns


def direction_across(strength: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Unit vectors x, y across the boundary, either way, from the second derivatives of the widely smoothed map."""
    down, right = np.gradient(smooth(strength, 4))
    down_down, down_right = np.gradient(down)
    x = np.gradient(right, axis=1) + 1e-5
    y = down_down * np.sign(-down_right)
    length = np.maximum(np.hypot(x, y), np.finfo(float).tiny)
    return x / length, y / length


def smooth(image: NDArray[np.float64], radius: int) -> NDArray[np.float64]:
    """Convolution with a triangle of `radius`, its border mirrored (convTri)."""
    for axis in (0, 1):
        rows = np.moveaxis(image, axis, 0)
        padded = np.pad(rows, ((radius, radius), (0, 0)), mode="symmetric")
        total = (radius + 1) * rows
        for step in range(1, radius + 1):
            low, high = radius - step, radius + step
            total += (radius + 1 - step) * (padded[low : low + len(rows)] + padded[high : high + len(rows)])
        image = np.moveaxis(total, 0, axis) / (radius + 1) ** 2
    return image
