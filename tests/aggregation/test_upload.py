"""A list of upload transforms: order, parts joined and cut again, what each keeps for itself."""

from typing import Any

import numpy as np
import pytest
import torch

from fedmtl.aggregation import DEA, PartUpdate, Sending, UploadTransform
from fedmtl.aggregation.upload import join, joined_layout, split, transform_upload
from fedmtl.vector import Layout

LAYOUTS = {
    "encoder": Layout(("stem.weight", "stem.bias"), (torch.Size([2, 3]), torch.Size([2]))),
    "heads.a": Layout(("out.weight",), (torch.Size([4]),)),
    "heads.b": Layout(("out.weight", "out.bias"), (torch.Size([3]), torch.Size([]))),
}


def updates(seed: int = 0, *names: str) -> dict[str, PartUpdate]:
    rng = np.random.default_rng(seed)
    return {
        name: PartUpdate(
            torch.from_numpy(rng.normal(size=sum(LAYOUTS[name].sizes))).float(), {"mean": torch.full((2,), float(i))}
        )
        for i, name in enumerate(names or LAYOUTS)
    }


def send(transforms: Any, found: dict[str, PartUpdate], memory: Any = None, round: int = 3) -> Any:
    options: dict[str, Any] = {"client": "c", "round": round, "rounds": 9, "seed": 5}
    return transform_upload(transforms, found, LAYOUTS, memory or {}, **options)


class Spy(UploadTransform):
    """Adds `step`, and counts its calls in its memory."""

    def __init__(self, part: Any = "encoder", *, step: float = 0.0, keeps: bool = True, masks: bool = False) -> None:
        self.part, self.step, self.keeps, self.masks = part, step, keeps, masks
        self.seen: list[tuple[torch.Tensor, Sending, Any]] = []

    def __call__(self, update: PartUpdate, sending: Sending) -> PartUpdate:
        self.seen.append((update.delta.clone(), sending, update.mask))
        if self.keeps:
            sending.memory["calls"] = sending.memory.get("calls", torch.zeros(1)) + 1
        mask = torch.arange(update.delta.numel()) % 2 == 0 if self.masks else update.mask
        return PartUpdate(update.delta + self.step, mask=mask, overlap=update.overlap)


def test_the_encoder_alone_is_seen_unless_the_transform_wants_the_model() -> None:
    encoder, model, found = Spy(), Spy("model"), updates()
    before = {name: update.delta.clone() for name, update in found.items()}
    sent, _ = send([encoder, model], found)
    assert list(sent) == list(LAYOUTS)
    [(delta, sending, _)] = encoder.seen
    assert torch.equal(delta, before["encoder"])
    assert sending.layout == LAYOUTS["encoder"]
    assert (sending.client, sending.round, sending.rounds, sending.seed) == ("c", 3, 9, 5)
    [(delta, sending, _)] = model.seen
    assert torch.equal(delta, torch.cat(list(before.values())))
    names = ("encoder.stem.weight", "encoder.stem.bias", "heads.a.out.weight", "heads.b.out.weight", "heads.b.out.bias")
    assert sending.layout.names == names
    assert sending.layout.sizes == [6, 2, 4, 3, 1]
    for name, update in sent.items():
        assert torch.equal(update.delta, before[name])
        assert torch.equal(update.buffers["mean"], updates()[name].buffers["mean"])


def test_transforms_go_in_order_and_see_the_masks_of_earlier_ones() -> None:
    first, second, found = Spy(step=1.0, masks=True), Spy("model", step=2.0), updates()
    before = {name: update.delta.clone() for name, update in found.items()}
    sent, _ = send([first, second], found)
    assert torch.equal(sent["encoder"].delta, before["encoder"] + 1 + 2)
    assert torch.equal(sent["heads.b"].delta, before["heads.b"] + 2)
    [(delta, _, mask)] = second.seen
    assert torch.equal(delta[:8], before["encoder"] + 1)
    expected = torch.cat([torch.arange(8) % 2 == 0, torch.ones(8, dtype=torch.bool)])
    assert torch.equal(mask, expected)
    assert torch.equal(sent["encoder"].mask, expected[:8])
    assert sent["heads.a"].mask.all()


def test_each_transform_has_a_memory_of_its_own_that_is_not_changed_in_place() -> None:
    transforms = [Spy(), Spy(keeps=False), Spy("model")]
    _, first = send(transforms, updates())
    assert {place: float(kept["calls"]) for place, kept in first.items()} == {"0": 1, "2": 1}
    _, second = send(transforms, updates(), first)
    assert {place: float(kept["calls"]) for place, kept in second.items()} == {"0": 2, "2": 2}
    assert {place: float(kept["calls"]) for place, kept in first.items()} == {"0": 1, "2": 1}
    _, again = send(transforms, updates(), {"1": {"calls": torch.ones(1)}})
    assert again["1"]["calls"] == 1  # what a transform leaves alone stays


def test_no_transforms_change_nothing() -> None:
    found = updates()
    sent, memory = send([], found)
    assert sent == found
    assert memory == {}


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("masked", [(), ("encoder",), ("encoder", "heads.b")])
def test_split_is_the_way_back_from_join(masked: Any, overlap: bool) -> None:
    found = updates()
    for name in masked:
        found[name].mask = found[name].delta > 0
        found[name].overlap = overlap
    parts = list(found.values())
    whole = join(parts)
    assert (whole.mask is None) == (not masked)
    assert whole.overlap == (overlap and bool(masked))
    assert not whole.buffers
    for one, back in zip(parts, split(whole, parts), strict=True):
        assert torch.equal(back.delta, one.delta)
        assert back.buffers is one.buffers
        expected = torch.ones_like(one.delta, dtype=torch.bool) if one.mask is None else one.mask
        assert back.mask is None if not masked else torch.equal(back.mask, expected)
    assert joined_layout(LAYOUTS).sizes == [6, 2, 4, 3, 1]


@pytest.mark.parametrize("rho", [0.1, 0.5, 1.0])
def test_dea_of_the_model_is_top_rho_of_all_entries(rho: float) -> None:
    found = updates()
    vector = torch.cat([update.delta for update in found.values()]).numpy().copy()
    sent, _ = send([DEA(rho=rho, part="model")], found)
    kept = int(np.ceil(round(rho * len(vector), 9)))
    mask = np.zeros(len(vector), bool)
    mask[np.argsort(-np.abs(vector), kind="stable")[:kept]] = True
    after = torch.cat([update.delta for update in sent.values()]).numpy()
    np.testing.assert_allclose(after, np.where(mask, vector, 0) / rho, rtol=1e-6)
    assert (torch.cat([update.mask for update in sent.values()]).numpy() == mask).all()


def test_error_feedback_of_the_model_holds_back_of_every_part() -> None:
    dea = DEA(rho=0.25, rescale="none", part="model", error_feedback=True)
    memory: Any = {}
    total, whole = torch.zeros(16), torch.zeros(16)
    for round in range(1, 6):
        found = updates(round)
        whole += torch.cat([update.delta for update in found.values()])
        sent, memory = send([dea], found, memory, round)
        total += torch.cat([update.delta for update in sent.values()])
        assert memory["0"]["residual"].shape == (16,)
    torch.testing.assert_close(total + memory["0"]["residual"], whole)
    assert memory["0"]["residual"][8:].any()


def test_a_client_that_shares_the_encoder_only_has_that_transformed() -> None:
    spy = Spy("model")
    sent, _ = send([spy], updates(0, "encoder"))
    assert list(sent) == ["encoder"]
    assert spy.seen[0][1].layout == LAYOUTS["encoder"]
