"""Morphological thinning of many binary maps at once, one in each bit of an integer."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def thinned_maps(level: NDArray[np.int64], count: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Thins `count` nested binary maps; map k holds the pixels of level above k.

    Args:
        level: 0 … count, (H, W).
        count: number of maps K.

    Returns:
        Flat indices of the n pixels that are in some thinned map, and which maps each is in, (K, n).
    """
    ones = np.array([(1 << bits) - 1 for bits in range(65)], dtype=np.uint64)
    words = [thin(ones[np.clip(level - low, 0, 64)]).ravel() for low in range(0, count, 64)]
    where = np.flatnonzero(np.bitwise_or.reduce(words))
    octets = np.stack([word[where] for word in words]).astype("<u8")[..., None].view(np.uint8)
    bits = np.unpackbits(octets, axis=-1, bitorder="little")
    return where, np.concatenate([word.T for word in bits])[:count].astype(bool)


def thin(maps: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Thins up to 64 binary maps at once, one in each bit of (H, W), until nothing changes.

    The parallel thinning with two sub-iterations of Guo and Hall (1989), as in MATLAB's ``bwmorph(…, 'thin',
    Inf)`` and ``skimage.morphology.thin``; beyond the border all is 0.
    """
    padded = np.pad(maps, 1)
    flat, stride = padded.ravel(), padded.shape[1]
    around = (1, 1 - stride, -stride, -stride - 1, -1, stride - 1, stride, stride + 1)  # from the east, anticlockwise
    before = last = flat != 0  # where something changed in the last two sub-iterations: elsewhere nothing will
    turn = 0
    while (at := np.flatnonzero((before | last) & (flat != 0))).size:
        removed = removable([flat[at + step] for step in around], turn) & flat[at]
        flat[at] ^= removed
        changed = at[removed != 0]
        before, last = last, np.zeros(flat.size, dtype=bool)
        for step in (0, *around):
            last[changed + step] = True
        turn = 4 - turn
    return padded[1:-1, 1:-1]


def removable(n: Sequence[NDArray[np.uint64]], turn: int) -> NDArray[np.uint64]:
    """Guo and Hall's conditions G1, G2 and G3 on the eight neighbours n, in every bit; turn is 0 or 4."""
    a, b, c, d = (~n[i] & (n[i + 1] | n[(i + 2) % 8]) for i in (0, 2, 4, 6))
    one_crossing = (a ^ b ^ c ^ d) & ~((a & b) | (c & d))
    enough, all_four = ~np.uint64(0), ~np.uint64(0)
    for side in (-1, 1):
        a, b, c, d = (n[i] | n[(i + side) % 8] for i in (1, 3, 5, 7))
        enough = enough & ((a & b) | (c & d) | ((a | b) & (c | d)))  # at least two of four
        all_four = all_four & a & b & c & d
    open_side = ~((n[turn + 1] | n[turn + 2] | ~n[(turn + 7) % 8]) & n[turn])
    return one_crossing & enough & ~all_four & open_side
