"""A module on one flat vector: same weights, same training, exact copies."""

import copy

import pytest
import torch
from torch import Tensor, nn

from fedmtl.vector import FlatPart, Layout, PartState


def network(seed: int = 0) -> nn.Module:
    """Convolution, BatchNorm with float and integer buffers, a frozen weight and a buffer that is not saved."""
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 4 * 4, 5, bias=False))
    module[3].weight.requires_grad_(False)
    module.register_buffer("temporary", torch.ones(2), persistent=False)
    return module


def images(n: int = 4, seed: int = 1) -> Tensor:
    return torch.randn(n, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


def train(module: nn.Module, *, steps: int = 3) -> None:
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=1e-2)
    for step in range(steps):
        optimizer.zero_grad()
        module(images(seed=step)).square().mean().backward()
        optimizer.step()


def flat(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in module.parameters()])


def shares_memory(module: nn.Module, vector: Tensor) -> bool:
    storage = vector.untyped_storage().data_ptr()
    return all(p.untyped_storage().data_ptr() == storage for p in module.parameters())


def test_vector_holds_every_parameter_in_the_module_s_order() -> None:
    module = network()
    before = flat(module)
    part = FlatPart(module)
    assert torch.equal(part.vector, before)
    assert part.layout.names == ("0.weight", "0.bias", "1.weight", "1.bias", "3.weight")
    assert part.layout.sizes == [108, 4, 4, 4, 320]
    assert not part.vector.requires_grad


def test_flattening_leaves_output_and_requires_grad() -> None:
    module = network().eval()
    before = module(images())
    FlatPart(module)
    assert torch.equal(module(images()), before)
    assert [p.requires_grad for p in module.parameters()] == [True, True, True, True, False]


def test_parameters_keep_their_identity() -> None:
    module = network()
    before = dict(module.named_parameters())
    FlatPart(module)
    assert all(parameter is before[name] for name, parameter in module.named_parameters())


def test_writing_the_vector_writes_the_model() -> None:
    module = network().eval()
    part = FlatPart(module)
    part.vector.zero_()
    assert torch.equal(module(images()), torch.zeros(4, 5))
    part.vector[0] = 7
    assert module[0].weight[0, 0, 0, 0] == 7


def test_writing_the_model_writes_the_vector() -> None:
    module = network()
    part = FlatPart(module)
    with torch.no_grad():
        module[3].weight.fill_(3)
    assert torch.all(part.vector[-320:] == 3)


def test_training_through_the_views_is_training_without_them() -> None:
    plain, module = network(), network()
    part = FlatPart(module)
    start = part.vector.clone()
    train(plain)
    train(module)
    assert torch.equal(part.vector, flat(plain))
    assert torch.all(part.vector[:-320] != start[:-320])
    assert torch.equal(part.vector[-320:], start[-320:])
    assert all(torch.equal(a, b) for a, b in zip(module.buffers(), plain.buffers(), strict=True))


@pytest.mark.parametrize("set_to_none", [True, False])
def test_memory_stays_shared_through_steps_loads_and_reads(set_to_none: bool) -> None:
    module = network()
    part = FlatPart(module)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, foreach=True)
    for _ in range(2):
        optimizer.zero_grad(set_to_none=set_to_none)
        module(images()).square().mean().backward()
        optimizer.step()
        part.load(part.read())
        assert shares_memory(module, part.vector)
    module.load_state_dict(network(seed=5).state_dict())
    assert shares_memory(module, part.vector)
    assert torch.equal(part.vector, flat(network(seed=5)))


def test_load_of_a_read_restores_parameters_and_buffers_exactly() -> None:
    module = network()
    part = FlatPart(module)
    train(module)
    state = part.read()
    saved = copy.deepcopy(module.state_dict())
    train(module)
    assert not torch.equal(part.vector, state.vector)
    assert module[1].num_batches_tracked == 6
    part.load(state)
    assert all(torch.equal(value, saved[name]) for name, value in module.state_dict().items())
    assert module[1].num_batches_tracked == 3
    assert module[1].num_batches_tracked.dtype == torch.int64


def test_a_state_moves_from_one_model_to_another() -> None:
    source, other = network(seed=0), network(seed=1)
    train(source)
    FlatPart(other).load(FlatPart(source).read())
    assert torch.equal(other.eval()(images()), source.eval()(images()))


def test_buffers_are_the_saved_ones_and_no_parameters() -> None:
    part = FlatPart(network())
    assert set(part.read().buffers) == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}


def test_read_is_a_copy() -> None:
    module = network()
    part = FlatPart(module)
    state = part.read()
    before = copy.deepcopy(state)
    train(module)
    part.vector.zero_()
    assert torch.equal(state.vector, before.vector)
    assert all(torch.equal(state.buffers[name], value) for name, value in before.buffers.items())


def test_load_keeps_no_hold_of_the_state() -> None:
    part = FlatPart(network())
    state = part.read()
    part.load(state)
    state.vector.zero_()
    state.buffers["1.running_var"].zero_()
    assert torch.any(part.vector != 0)
    assert torch.all(part.buffers["1.running_var"] == 1)


def test_a_state_of_another_model_is_refused() -> None:
    part = FlatPart(network())
    with pytest.raises(RuntimeError, match="size"):
        part.load(FlatPart(nn.Linear(3, 3)).read())


def test_a_bf16_module_is_read_and_loaded_as_fp32() -> None:
    module = network().to(torch.bfloat16)
    part = FlatPart(module)
    assert part.vector.dtype == torch.bfloat16
    state = part.read()
    assert state.vector.dtype == torch.float32
    assert torch.equal(state.vector, flat(module).float())
    state.vector.fill_(1 + 2**-10)  # between two bf16 numbers
    part.load(state)
    assert torch.all(part.vector == 1)
    assert all(p.dtype == torch.bfloat16 for p in module.parameters())


def test_a_module_in_channels_last_format_keeps_its_output() -> None:
    module = network().eval()
    expected = module(images())
    module = module.to(memory_format=torch.channels_last)
    part = FlatPart(module)
    torch.testing.assert_close(module(images()), expected)
    assert torch.equal(part.vector, flat(network()))


def test_layout_views_are_views_of_the_right_shapes() -> None:
    layout = Layout(("a", "scalar", "empty", "b"), tuple(map(torch.Size, ((2, 3), (), (0, 4), (4,)))))
    vector = torch.arange(11.0)
    views = list(layout.views(vector))
    assert [view.shape for view in views] == list(layout.shapes)
    assert views[0].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert views[1].item() == 6
    for view in views:
        view.add_(100)
    assert torch.equal(vector, torch.arange(100.0, 111.0))


@pytest.mark.parametrize("size", [10, 12])
def test_layout_refuses_a_vector_of_another_size(size: int) -> None:
    with pytest.raises(RuntimeError, match="split"):
        list(Layout(("a", "b"), (torch.Size((2, 3)), torch.Size((5,)))).views(torch.zeros(size)))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["vector", "buffer"])
def test_is_finite_looks_at_the_vector_and_the_buffers(bad: float, where: str) -> None:
    state = PartState(torch.ones(3), {"mean": torch.ones(2), "count": torch.tensor(4)})
    assert state.is_finite()
    (state.vector if where == "vector" else state.buffers["mean"])[1] = bad
    assert not state.is_finite()


def test_to_moves_everything() -> None:
    state = PartState(torch.ones(3), {"count": torch.tensor(4)}).to(torch.device("meta"))
    assert state.vector.device.type == "meta"
    assert state.buffers["count"].device.type == "meta"


def test_state_dict_is_the_way_there_and_back(tmp_path) -> None:
    state = FlatPart(network()).read()
    torch.save(state.state_dict(), tmp_path / "state.pt")
    back = PartState(**torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(back.vector, state.vector)
    assert back.buffers.keys() == state.buffers.keys()
    assert all(torch.equal(back.buffers[name], value) for name, value in state.buffers.items())
