"""The encoder on real timm backbones, its weights from a file, and the unified model."""

from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from fedmtl.errors import UserError
from fedmtl.models import Decoder, FeaturePyramid, UnifiedModel

CONVNEXT, EFFICIENTNET, SWIN = "test_convnext", "test_efficientnet", "swin_tiny_patch4_window7_224"
HEADS = {"semseg": 5, "depth": 1}


@pytest.fixture(scope="module")
def encoder() -> Callable[[str], FeaturePyramid]:
    """One encoder in evaluation mode for each name."""
    made: dict[str, FeaturePyramid] = {}

    def get(name: str) -> FeaturePyramid:
        if name not in made:
            torch.manual_seed(0)
            made[name] = FeaturePyramid(name).eval()
        return made[name]

    return get


@pytest.fixture(scope="module")
def model() -> UnifiedModel:
    torch.manual_seed(0)
    return UnifiedModel(HEADS, backbone=CONVNEXT, channels=8).eval()


def images(height: int, width: int, *, n: int = 1) -> Tensor:
    return torch.randn(n, 3, height, width, generator=torch.Generator().manual_seed(0))


def joined(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm renames "stages.0" to "stages_0" where it makes a pyramid."""
    return {name.replace(".", "_"): value for name, value in state.items()}


def save(state: dict[str, Tensor], path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


def weights_error(name: str, path: Path) -> str:
    with pytest.raises(UserError) as caught:
        FeaturePyramid(name, weights=path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


@pytest.mark.parametrize("size", [(64, 64), (32, 96), (96, 160)], ids=str)
@pytest.mark.parametrize("name", [CONVNEXT, EFFICIENTNET, SWIN])
@torch.no_grad()
def test_maps_are_channels_first_and_cover_the_image(encoder, name: str, size: tuple[int, int]) -> None:
    body = encoder(name)
    maps = body(images(*size))
    assert body.strides == [4, 8, 16, 32]
    expected = [(1, c, size[0] // s, size[1] // s) for c, s in zip(body.channels, body.strides, strict=True)]
    assert [tuple(features.shape) for features in maps] == expected


@torch.no_grad()
def test_swin_maps_are_channels_first_where_a_side_equals_the_channels(encoder) -> None:
    body = encoder(SWIN)
    assert 384 // body.strides[0] == body.channels[0]
    assert body(images(384, 64))[0].shape == (1, body.channels[0], 96, 16)


@torch.no_grad()
def test_swin_maps_are_those_of_timm_permuted(encoder) -> None:
    body = encoder(SWIN)
    image = images(64, 96)
    for ours, theirs in zip(body(image), body.body(image), strict=True):
        assert torch.equal(ours, theirs.permute(0, 3, 1, 2))


@torch.no_grad()
def test_a_finer_first_map_is_left_out(encoder) -> None:
    body = encoder(EFFICIENTNET)
    image = images(64, 64)
    all_maps = body.body(image)
    assert len(all_maps) == 5
    assert all_maps[0].shape[-1] == 32
    for ours, theirs in zip(body(image), all_maps[1:], strict=True):
        assert torch.equal(ours, theirs)


@torch.no_grad()
def test_an_odd_size_is_padded_with_zeros_on_the_right_and_below(model: UnifiedModel) -> None:
    image = images(70, 50)
    padded = model(F.pad(image, (0, 14, 0, 26)))
    for name, output in model(image).items():
        assert torch.equal(output, padded[name][..., :70, :50])


@settings(max_examples=15, deadline=None)
@given(height=st.integers(1, 70), width=st.integers(1, 70))
@torch.no_grad()
def test_output_has_the_size_of_the_image(model: UnifiedModel, height: int, width: int) -> None:
    outputs = model(images(height, width, n=2))
    assert {name: output.shape for name, output in outputs.items()} == {
        name: (2, channels, height, width) for name, channels in HEADS.items()
    }
    assert all(torch.isfinite(output).all() for output in outputs.values())


@pytest.mark.parametrize("name", [EFFICIENTNET, SWIN])
@torch.no_grad()
def test_every_backbone_feeds_the_heads(name: str) -> None:
    model = UnifiedModel(HEADS, backbone=name, channels=16, norm="batch").eval()
    assert model(images(45, 70))["semseg"].shape == (1, 5, 45, 70)


@torch.no_grad()
def test_only_the_asked_heads_are_computed(model: UnifiedModel) -> None:
    image = images(40, 40)
    every = model(image)
    assert list(every) == list(HEADS)
    assert list(model(image, heads=["depth"])) == ["depth"]
    assert torch.equal(model(image, heads=["depth"])["depth"], every["depth"])
    assert model(image, heads=[]) == {}
    with pytest.raises(KeyError):
        model(image, heads=["normals"])


def test_a_loss_of_one_head_trains_it_and_the_encoder_but_no_other_head() -> None:
    model = UnifiedModel(HEADS, backbone=CONVNEXT, channels=8)
    model(images(64, 64))["depth"].sum().backward()
    assert all(p.grad is not None for p in model.encoder.parameters())
    assert all(p.grad is not None for p in model.heads["depth"].parameters())
    assert all(p.grad is None for p in model.heads["semseg"].parameters())


def test_parts_are_the_encoder_and_each_head_and_hold_every_parameter_once(model: UnifiedModel) -> None:
    parts = model.parts()
    assert list(parts) == ["encoder", "heads.semseg", "heads.depth"]
    assert parts["encoder"] is model.encoder
    assert parts["heads.depth"] is model.heads["depth"]
    inside = [p for part in parts.values() for p in part.parameters()]
    assert list(map(id, inside)) == list(map(id, model.parameters()))


@pytest.mark.parametrize(("norm", "buffers"), [("group", 0), ("batch", 9)])
def test_group_norm_heads_have_no_running_statistics(norm: str, buffers: int) -> None:
    decoder = Decoder([8, 16], 3, channels=8, norm=norm)
    assert len(list(decoder.buffers())) == buffers
    assert decoder([images(8, 8).repeat(1, 3, 1, 1)[:, :8], torch.zeros(1, 16, 4, 4)], (30, 31)).shape == (1, 3, 30, 31)


@pytest.mark.parametrize("channels", [0, 4, 12, -8])
def test_a_width_that_is_no_multiple_of_8_is_refused(channels: int) -> None:
    with pytest.raises(ValueError, match=f"model.channels .* not {channels}"):
        UnifiedModel(HEADS, backbone=CONVNEXT, channels=channels)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("name", [CONVNEXT, EFFICIENTNET])
def test_encoder_starts_from_a_local_file_of_the_whole_classifier(tmp_path: Path, name: str, suffix: str) -> None:
    torch.manual_seed(7)
    classifier = timm.create_model(name)
    for parameter in classifier.parameters():
        nn.init.normal_(parameter)
    path = save(classifier.state_dict(), tmp_path / f"weights{suffix}")
    stored = joined(classifier.state_dict())
    for weights in (path, str(path)):
        model = UnifiedModel(HEADS, backbone=name, weights=weights, channels=8)
        for key, value in joined(model.encoder.body.state_dict()).items():
            assert torch.equal(value, stored[key])


def test_a_missing_weights_file_is_one_line_of_advice(tmp_path: Path) -> None:
    assert "there is no file" in weights_error(CONVNEXT, tmp_path / "nowhere.pth")
    assert "there is no file" in weights_error(CONVNEXT, tmp_path)


@pytest.mark.parametrize("content", [b"", b"no weights at all" * 50], ids=["empty", "text"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_broken_weights_file_is_one_line_of_advice(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(content)
    assert "does not fit test_convnext" in weights_error(CONVNEXT, path)


@pytest.mark.parametrize("other", [EFFICIENTNET, "convnext_atto", "test_vit"])
def test_the_weights_of_another_model_are_one_line_of_advice(tmp_path: Path, other: str) -> None:
    path = save(timm.create_model(other).state_dict(), tmp_path / "other.pth")
    assert "does not fit test_convnext" in weights_error(CONVNEXT, path)


@pytest.mark.parametrize("case", ["another family", "prefixed names", "half of the names", "no names"])
def test_a_file_that_does_not_fill_the_encoder_is_refused(tmp_path: Path, case: str) -> None:
    state = timm.create_model("test_vit" if case == "another family" else EFFICIENTNET).state_dict()
    if case == "prefixed names":
        state = {f"backbone.{key}": value for key, value in state.items()}
    elif case == "half of the names":
        state = dict(list(state.items())[: len(state) // 2])
    elif case == "no names":
        state = {}
    weights_error(EFFICIENTNET, save(state, tmp_path / "other.pth"))


@pytest.mark.parametrize(("name", "near"), [("convnext_atoo", "convnext_atto"), ("swin_tiny", "swin_"), ("", "")])
def test_an_unknown_backbone_is_refused_with_names_near_it(name: str, near: str) -> None:
    with pytest.raises(UserError, match=f"no model '{name}'; it has e.g. .*{near}") as caught:
        FeaturePyramid(name)
    assert "\n" not in str(caught.value)


def test_pretrained_without_a_network_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # what the variable of that name sets
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"model\.weights.*model\.pretrained: false") as caught:
        FeaturePyramid(CONVNEXT, pretrained=True)
    assert "\n" not in str(caught.value)


def test_options_reach_the_backbone() -> None:
    def rates(options: dict[str, float] | None) -> float:
        body = FeaturePyramid(CONVNEXT, options=options).body
        return max((getattr(m, "drop_prob", 0) or 0 for m in body.modules()), default=0)

    assert rates(None) == 0
    assert rates({"drop_path_rate": 0.1}) == pytest.approx(0.1)


def test_an_unknown_option_is_refused_by_name() -> None:
    with pytest.raises(UserError, match=r"model\.options: test_convnext does not take them: .*nonsense"):
        UnifiedModel(HEADS, backbone=CONVNEXT, options={"nonsense": 1})


class _Malicious:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.trace,)


def test_a_weights_file_runs_no_code(tmp_path: Path) -> None:
    path = tmp_path / "evil.pth"
    torch.save({"stem.0.weight": _Malicious(tmp_path / "was_here")}, path)
    weights_error(CONVNEXT, path)
    assert not (tmp_path / "was_here").exists()
