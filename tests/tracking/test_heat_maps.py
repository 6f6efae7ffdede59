import numpy as np
import torch

from fedmtl.aggregation.update import PartUpdate
from fedmtl.diagnostics import Diagnostics
from fedmtl.tracking.heat_maps import heat_maps
from fedmtl.vector import Layout


def details(clients: int, *, masks: bool):
    torch.manual_seed(0)
    layout = Layout(("stem.weight", "stages_0.weight"), (torch.Size([40]), torch.Size([60])))
    diagnostics = Diagnostics(every=1)
    for k in range(clients):
        raw = torch.randn(100)
        mask = torch.rand(100) < 0.4 if masks else None
        sent = PartUpdate(raw * mask, mask=mask) if mask is not None else PartUpdate(raw)
        diagnostics.observe(f"client {k}", raw, sent, 1.0)
    return diagnostics.measure(layout, torch.randn(100), torch.randn(100))[1]


def test_what_was_measured_is_drawn():
    assert set(heat_maps(3, details(3, masks=True))) == {"cosine", "sent_cosine", "mask_overlap", "mask_share"}
    assert set(heat_maps(3, details(3, masks=False))) == {"cosine"}
    assert set(heat_maps(3, details(1, masks=True))) == {"mask_share"}
    many = heat_maps(1, details(90, masks=False))["cosine"]  # names are thinned out
    assert many.shape == (560, 640, 3)
    assert many.dtype == np.uint8


def test_colours_follow_the_values():
    """With 20 rows no numbers stand in the cells; conflict, −1, is red, and 1 is blue."""
    values = np.ones((20, 20))
    values[10:] = -1
    measured = {"clients": [str(i) for i in range(20)], "pairs": {"cosine": values}, "each": {}}
    drawn = heat_maps(1, measured)["cosine"].astype(int)
    column = drawn[:, 200]
    red = np.flatnonzero((column[:, 0] > 90) & (column[:, 2] < 40))
    blue = np.flatnonzero((column[:, 2] > 90) & (column[:, 0] < 40))
    assert len(red) > 100
    assert len(blue) > 100
    assert blue.max() < red.min()
