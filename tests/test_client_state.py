"""What clients keep: in memory and in files the same, each file read only when it is needed."""

from pathlib import Path

import pytest
import torch

from fedmtl.client_state import ClientState, Kept, file_name
from fedmtl.errors import UserError
from fedmtl.vector import PartState

from .end_to_end.comparing import same


def a_state() -> ClientState:
    """A state with something of everything."""
    parameter = torch.nn.Parameter(torch.randn(3))
    optimizer = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimizer.step()
    part = PartState(torch.randn(6), {"running_mean": torch.randn(2), "count": torch.tensor(4)})
    return ClientState(
        optimizer={"train": optimizer.state_dict()},
        personal={"heads.depth": part},
        own={"encoder": PartState(torch.randn(2))},
        algorithm={"control": {"encoder": torch.randn(6)}},
        upload={"0": {"residual": torch.randn(6)}},
    )


def test_a_state_comes_back_from_a_file_as_it_was(tmp_path: Path) -> None:
    state = a_state()
    kept = Kept(3, state)
    kept.write(tmp_path / "a")
    assert kept.path == tmp_path / "a"
    assert same(Kept(3, path=kept.path).state.state_dict(), state.state_dict())
    again = ClientState.from_state_dict(state.state_dict())
    assert same(again.state_dict(), state.state_dict())
    assert isinstance(again.personal["heads.depth"], PartState)


def test_the_state_of_a_file_may_be_changed_and_the_file_stays(tmp_path: Path) -> None:
    Kept(1, a_state()).write(tmp_path / "a")
    before = (tmp_path / "a").read_bytes()
    kept = Kept(1, path=tmp_path / "a")
    first = kept.state
    first.upload["0"]["residual"] += 1
    first.personal["heads.depth"].vector.zero_()
    assert (tmp_path / "a").read_bytes() == before
    assert not same(kept.state.state_dict(), first.state_dict())


def test_nothing_is_kept_at_first() -> None:
    assert Kept().state.is_empty()
    assert not a_state().is_empty()


def test_a_damaged_file_is_an_error_when_it_is_read(tmp_path: Path) -> None:
    Kept(1, a_state()).write(tmp_path / "a")
    (tmp_path / "a").write_bytes((tmp_path / "a").read_bytes()[:-4])
    kept = Kept(1, path=tmp_path / "a")
    with pytest.raises(UserError, match="damaged"):
        kept.state  # noqa: B018


@pytest.mark.parametrize(
    "name", ["depth", "normals+saliency", "../../etc/passwd", "a/b", "größe", "a\0b", "%2F", "a.b"]
)
def test_every_client_has_a_file_of_its_own_in_the_folder(name: str, tmp_path: Path) -> None:
    path = tmp_path / file_name(name, 12)
    assert path.parent == tmp_path
    assert path.name.endswith(".000012.safetensors")
    assert file_name(name, 12) != file_name(f"{name}x", 12)
    Kept(12, a_state()).write(path)
    assert list(tmp_path.iterdir()) == [path]


def test_names_do_not_collide() -> None:
    names = ["a/b", "a%2Fb", "a b", "a+b", "a%20b", "a.000001", "a"]
    assert len({file_name(name, round) for name in names for round in (1, 2)}) == 2 * len(names)


@pytest.mark.parametrize("where", ["personal", "own"])
def test_weights_that_are_not_finite_are_noticed(where: str) -> None:
    state = a_state()
    assert state.is_finite()
    next(iter(getattr(state, where).values())).vector[0] = torch.inf
    assert not state.is_finite()
