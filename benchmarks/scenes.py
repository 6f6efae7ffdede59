"""Time to render the built-in scenes: 1,000 images of 64×64 from nothing, and images a second by size."""

import os
import tempfile
import time

from fedmtl.data.scenes import Scenes


def seconds(count: int, size: int) -> float:
    """Time for a training split of `count` images, in a cache folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FEDMTL_CACHE"] = folder
        start = time.perf_counter()
        Scenes(train=count, val=1, size=size).arrays("train")
        return time.perf_counter() - start


if __name__ == "__main__":
    seconds(10, 64)  # warm-up
    total = seconds(1000, 64)
    print(f"1,000 images of 64×64: {total:.1f} s")
    for size, count in ((64, 200), (128, 100), (256, 40)):
        print(f"{size:4d}×{size:<4d} {count / seconds(count, size):7.1f} images/s")
