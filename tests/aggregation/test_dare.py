"""DARE: Bernoulli masks, unbiased updates, and nothing but seed, client and round behind them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from torch import Tensor

from fedmtl.aggregation import PartUpdate, Sending
from fedmtl.aggregation.dare import DARE
from fedmtl.vector import Layout

DROPS = [0.0, 0.3, 0.9, 0.99]


def send(delta: Tensor, drop: float, mask: Tensor | None = None, **changes: Any) -> PartUpdate:
    layout = Layout(("a",), (delta.shape,))
    return DARE(drop=drop)(PartUpdate(delta.clone(), mask=mask), Sending(layout, **{"client": "ann", **changes}))


def mask_of(sent: PartUpdate) -> Tensor:
    assert sent.mask is not None
    return sent.mask


@given(
    npst.arrays(np.float32, st.integers(0, 50), elements=st.floats(-1e6, 1e6, width=32, allow_subnormal=False)),
    st.sampled_from(DROPS),
    st.integers(0, 5),
)
def test_kept_entries_are_divided_by_what_is_left(array: np.ndarray, drop: float, seed: int) -> None:
    sent = send(torch.from_numpy(array), drop, seed=seed)
    expected = np.where(mask_of(sent).numpy(), array.astype(np.float64) / (1 - drop), 0)
    np.testing.assert_allclose(sent.delta.numpy(), expected, rtol=1e-6)
    assert not sent.overlap


def test_dropping_nothing_is_fedavg_to_the_bit() -> None:
    delta = torch.randn(100)
    sent = send(delta, 0.0)
    assert torch.equal(sent.delta, delta)
    assert mask_of(sent).all()


@pytest.mark.parametrize("drop", DROPS)
def test_entries_are_dropped_independently_with_the_probability(drop: float) -> None:
    kept = mask_of(send(torch.ones(200_000), drop)).double()
    error = math.sqrt(drop * (1 - drop) / len(kept))
    assert abs(float(kept.mean()) - (1 - drop)) <= 5 * error
    pairs = kept[1:] * kept[:-1]  # neighbours are kept together no more often than by chance
    assert abs(float(pairs.mean()) - (1 - drop) ** 2) <= 10 * error * (1 - drop) + 1e-4


def test_the_mean_over_many_draws_is_the_update() -> None:
    delta, draws = torch.linspace(-3, 3, 50), 4000
    sent = torch.stack([send(delta, 0.8, seed=seed).delta for seed in range(draws)]).double()
    error = delta.double().abs() * math.sqrt(0.8 / 0.2 / draws)
    assert ((sent.mean(dim=0) - delta).abs() <= 5 * error).all()


def test_the_mask_follows_seed_client_and_round() -> None:
    delta = torch.ones(1000)
    mask = mask_of(send(delta, 0.5))
    assert torch.equal(mask, mask_of(send(-delta, 0.5, rounds=7)))
    for changes in ({"seed": 1}, {"client": "bob"}, {"round": 2}):
        assert not torch.equal(mask, mask_of(send(delta, 0.5, **changes))), changes


def test_it_keeps_part_of_what_was_sent_so_far() -> None:
    before = torch.arange(1000) % 2 == 0
    mask = mask_of(send(torch.ones(1000), 0.5, before))
    assert torch.equal(mask, mask_of(send(torch.ones(1000), 0.5)) & before)


@pytest.mark.parametrize("drop", [-0.1, 1, 1.5, math.nan, True, "half"])
def test_bad_probabilities_are_refused(drop: Any) -> None:
    with pytest.raises(ValueError, match=r"^drop must be a number in \[0, 1\), got "):
        DARE(drop=drop)


def test_two_of_them_in_one_list_draw_their_own_numbers() -> None:
    delta = torch.ones(4000)
    first = send(delta, 0.5)
    again, other = (send(first.delta, 0.5, mask=first.mask, place=place) for place in (0, 1))
    assert torch.equal(mask_of(again), mask_of(first))  # the same place, the same mask
    assert float(other.delta.mean()) == pytest.approx(1, abs=0.15)
    assert int(mask_of(other).sum()) == pytest.approx(1000, abs=120)
