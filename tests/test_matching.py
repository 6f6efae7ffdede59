"""What a client and the server share, against index arithmetic in NumPy, and against what the layers compute."""

from fnmatch import fnmatchcase

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from timm.models.swin_transformer import PatchMerging, WindowAttention
from torch import Tensor, nn

from fedmtl.matching import first_conv, match_layouts, shared_buffers
from fedmtl.models import Decoder, FeaturePyramid
from fedmtl.vector import FlatPart, Layout

RULES = ("shape", "leading")
QKV = "layers_0.blocks.0.attn.qkv.weight"
Shapes = dict[str, tuple[int, ...]]
Indices = NDArray[np.int64]


def layout(shapes: Shapes) -> Layout:
    return Layout(tuple(shapes), tuple(map(torch.Size, shapes.values())))


def layout_of(module: nn.Module) -> Layout:
    return layout({name: tuple(p.shape) for name, p in module.named_parameters()})


def reference(local: Shapes, server: Shapes, by: str, private: list[str]) -> tuple[Indices, Indices]:
    """Index of each shared entry in the client's vector and in the server's, by a loop over entries."""
    pairs = []
    offsets = [
        dict(zip(s, np.cumsum([0, *map(np.prod, s.values())], dtype=int), strict=False)) for s in (local, server)
    ]
    for name, ours in local.items():
        theirs = server.get(name)
        if theirs is None or any(fnmatchcase(name, pattern) for pattern in private):
            continue
        if ours != theirs and (by == "shape" or len(ours) != len(theirs)):
            continue
        if ours != theirs and len(ours) == 4 and ours[2:] != theirs[2:]:
            continue
        blocks = 3 if name == QKV else 1
        corner = [min(a, b) for a, b in zip(ours, theirs, strict=True)]
        for index in np.ndindex(*corner):
            places = []
            for shape, offset in zip((ours, theirs), offsets, strict=True):
                place = list(index)
                if blocks > 1:  # row r of the corner is channel r mod w of block r // w
                    block, channel = divmod(index[0], corner[0] // blocks)
                    place[0] = block * (shape[0] // blocks) + channel
                places.append(offset[name] + (int(np.ravel_multi_index(place, shape)) if shape else 0))
            pairs.append(places)
    ours_, theirs_ = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    return ours_, theirs_


@st.composite
def shapes(draw: st.DrawFn) -> tuple[Shapes, Shapes]:
    """A client's tensors and a server's: alike, wider, of another rank, or lacking, in any order."""
    local: Shapes = {}
    server: Shapes = {}
    for name in draw(st.permutations(["a", "b.weight", "b.bias", "c", "d"])):
        ours = draw(st.lists(st.integers(0, 4), max_size=4))
        theirs = draw(
            st.one_of(
                st.just(ours),
                st.lists(st.integers(0, 4), min_size=len(ours), max_size=len(ours)),
                st.tuples(*(st.integers(0, 4) for _ in ours[:2])).map(lambda lead, o=ours: [*lead, *o[2:]]),
                st.lists(st.integers(0, 4), max_size=4),
            )
        )
        side = draw(st.sampled_from(["both", "both", "both", "local", "server"]))
        if side != "server":
            local[name] = tuple(ours)
        if side != "local":
            server[name] = tuple(theirs)
    if draw(st.booleans()):
        width, other = draw(st.integers(1, 3)), draw(st.integers(1, 3))
        local[QKV], server[QKV] = (3 * width, width), (3 * other, other)
    order = draw(st.permutations(list(server)))
    return local, {name: server[name] for name in order}


def values(size: int, seed: int = 0) -> Tensor:
    """Small whole numbers, none zero, whose sums are exact in fp32."""
    drawn = np.random.default_rng(seed).integers(1, 50, size)
    return torch.tensor(drawn, dtype=torch.float32)


@settings(max_examples=60, deadline=None)
@given(shapes(), st.sampled_from(RULES), st.sampled_from([[], ["b.*"], ["a", "?"]]))
def test_every_operation_is_index_arithmetic(pair: tuple[Shapes, Shapes], by, private: list[str]) -> None:
    local, server = pair
    private = [p for p in private if any(fnmatchcase(name, p) for name in local)]
    ours, theirs = reference(local, server, by, private)
    match = match_layouts(layout(local), layout(server), by=by, private=private)
    d_local, d_server = match.local_entries, match.server_entries
    assert (d_local, d_server) == tuple(sum(int(np.prod(shape)) for shape in side.values()) for side in pair)
    assert match.shared_entries == len(ours)
    own, other = values(d_local, 1), values(d_server, 2)

    filled = own.numpy().copy()
    filled[ours] = other.numpy()[theirs]
    np.testing.assert_array_equal(match.fill(own, other).numpy(), filled)

    expanded = np.zeros(d_server, np.float32)
    expanded[theirs] = own.numpy()[ours]
    np.testing.assert_array_equal(match.expand(own).numpy(), expanded)

    np.testing.assert_array_equal(match.select(own).numpy(), own.numpy()[ours])
    placed = np.zeros(d_server, np.float32)
    placed[theirs] = np.arange(1, len(ours) + 1)
    np.testing.assert_array_equal(match.place(torch.arange(1.0, len(ours) + 1)).numpy(), placed)

    held = np.zeros(d_server, bool)
    held[theirs] = True
    np.testing.assert_array_equal(match.held.numpy(), held)
    assert match.held.sum() == match.shared_entries

    mask = values(d_local, 3) > 25
    assert match.expand(mask).dtype == match.select(mask).dtype == torch.bool
    np.testing.assert_array_equal(match.expand(mask).numpy(), held & (match.expand(mask.float()).numpy() > 0))


@settings(max_examples=30, deadline=None)
@given(shapes(), st.sampled_from(RULES))
def test_expanding_is_adjoint_to_filling(pair: tuple[Shapes, Shapes], by) -> None:
    match = match_layouts(*map(layout, pair), by=by)
    d_local, d_server = match.local_entries, match.server_entries
    update, server = values(d_local, 1), values(d_server, 2)
    assert match.expand(update) @ server == update @ match.fill(torch.zeros(d_local), server)


@settings(max_examples=30, deadline=None)
@given(shapes(), st.sampled_from(RULES))
def test_round_trips_keep_what_is_shared(pair: tuple[Shapes, Shapes], by) -> None:
    match = match_layouts(*map(layout, pair), by=by)
    d_local, d_server = match.local_entries, match.server_entries
    local, server = values(d_local, 1), values(d_server, 2)
    assert torch.equal(match.fill(local, match.expand(local)), local)
    assert torch.equal(match.expand(match.fill(local, server)), server * match.held)


@settings(max_examples=30, deadline=None)
@given(shapes(), st.sampled_from(RULES))
def test_nothing_returned_shares_memory_with_what_came_in(pair: tuple[Shapes, Shapes], by) -> None:
    for match in (match_layouts(*map(layout, pair), by=by), match_layouts(layout(pair[0]), layout(pair[0]), by=by)):
        d_local, d_server = match.local_entries, match.server_entries
        local, server = values(d_local, 1), values(d_server, 2)
        before, before_server, shared = local.clone(), server.clone(), match.select(local)
        for given_out in (match.fill(local, server), shared, match.expand(local), match.place(shared.clone())):
            given_out.fill_(-1)
        match.place(shared).fill_(-2)
        assert torch.all(shared == -1)
        assert torch.equal(local, before)
        assert torch.equal(server, before_server)


@settings(max_examples=30, deadline=None)
@given(shapes(), st.sampled_from(RULES))
def test_a_layout_matches_itself_in_place(pair: tuple[Shapes, Shapes], by) -> None:
    itself = match_layouts(layout(pair[0]), layout(pair[0]), by=by)
    assert itself.identity
    local, server = values(itself.local_entries, 1), values(itself.local_entries, 2)
    assert torch.equal(itself.fill(local, server), server)
    assert torch.equal(itself.expand(local), local)
    assert torch.equal(itself.select(local), local)
    assert itself.held.all()


@pytest.mark.parametrize(
    ("server", "private"),
    [
        ({"b": (4,), "a": (2, 2)}, []),  # another order
        ({"a": (2, 2), "b": (4,), "c": (1,)}, []),
        ({"a": (2, 2)}, []),
        ({"a": (3, 2), "b": (4,)}, []),
        ({"a": (2, 2), "b": (4,)}, ["b"]),
    ],
)
@pytest.mark.parametrize("by", RULES)
def test_what_is_moved_or_left_out_is_no_identity(server: Shapes, private: list[str], by) -> None:
    assert not match_layouts(layout({"a": (2, 2), "b": (4,)}), layout(server), by=by, private=private).identity


def test_leading_channels_by_hand() -> None:
    match = match_layouts(layout({"w": (2, 3), "b": (2,)}), layout({"b": (3,), "w": (3, 2)}), by="leading")
    assert match.shared == layout({"w": (2, 2), "b": (2,)})
    local = torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 8])
    server = torch.tensor([10.0, 11, 12, 20, 21, 22, 23, 24, 25])
    assert match.fill(local, server).tolist() == [20, 21, 3, 22, 23, 6, 10, 11]
    assert match.expand(local).tolist() == [7, 8, 0, 1, 2, 4, 5, 0, 0]
    assert match.held.tolist() == [True, True, False, True, True, True, True, False, False]
    assert match.select(local).tolist() == [1, 2, 4, 5, 7, 8]


def test_shape_shares_whole_tensors_only() -> None:
    match = match_layouts(layout({"w": (2, 3), "b": (2,)}), layout({"w": (2, 3), "b": (3,)}))
    assert match.shared == layout({"w": (2, 3)})


@pytest.mark.parametrize(
    ("name", "ours", "theirs", "corner"),
    [
        ("conv.weight", (4, 2, 3, 3), (2, 4, 3, 3), (2, 2, 3, 3)),
        ("conv.weight", (4, 2, 1, 1), (4, 2, 3, 3), None),  # kernels of another size
        ("conv.weight", (4, 2, 3, 5), (4, 4, 3, 3), None),
        ("conv.weight", (4, 2, 5, 3), (4, 4, 3, 3), None),
        ("fc.weight", (4, 2), (4, 2, 1, 1), None),  # linear or 1×1 convolution
        ("position", (1, 4, 6), (1, 4, 3), (1, 4, 3)),
        ("scale", (), (), ()),
        ("body.layers_0.blocks.1.attn.qkv.weight", (6, 2), (12, 4), (3, 2, 2)),
        ("body.layers_0.blocks.1.attn.qkv.bias", (12,), (6,), (3, 2)),
        ("body.layers_1.downsample.reduction.weight", (4, 8), (8, 16), (4, 4, 2)),
        ("body.layers_1.downsample.norm.weight", (8,), (16,), None),
        ("body.layers_0.attn.qkv.weight", (6, 2), (13, 4), None),
        ("body.stages_1.downsample.reduction.weight", (4, 8), (8, 16), None),
        ("body.blocks.0.attn.qkv.weight", (6, 2), (12, 4), None),  # perhaps three blocks, perhaps heads
        ("body.stages_0.attn.kv.bias", (4,), (8,), None),
        ("body.stages_0.attn.kv.bias", (4,), (4,), (4,)),
        ("fuse.0.weight", (8, 32, 1, 1), (16, 64, 1, 1), (8, 4, 8, 1, 1)),
        ("fuse.0.weight", (8,), (16,), (8,)),
    ],
)
def test_the_corner_that_is_led(name: str, ours, theirs, corner) -> None:
    match = match_layouts(layout({name: ours}), layout({name: theirs}), by="leading")
    assert match.shared == layout({} if corner is None else {name: corner})


@pytest.mark.parametrize("by", RULES)
def test_private_tensors_are_neither_taken_nor_sent(by) -> None:
    names = {"stem.weight": (2, 2), "stem.bias": (2,), "Stem.bias": (2,), "body": (3,)}
    match = match_layouts(layout(names), layout(names), by=by, private=["stem.*"])
    local, server = torch.arange(1.0, 12), -torch.arange(1.0, 12)
    assert match.fill(local, server).tolist() == [1, 2, 3, 4, 5, 6, -7, -8, -9, -10, -11]
    assert match.expand(local).tolist() == [0] * 6 + [7, 8, 9, 10, 11]
    assert match.held.tolist() == [False] * 6 + [True] * 5


def test_nothing_shared_is_no_error() -> None:
    match = match_layouts(layout({"a": (2,)}), layout({"b": (3,)}))
    assert match.shared_entries == 0
    assert match.fill(torch.ones(2), torch.zeros(3)).tolist() == [1, 1]
    assert match.expand(torch.ones(2)).tolist() == [0, 0, 0]
    assert match.select(torch.ones(2, dtype=torch.bool)).dtype == torch.bool


def test_every_bit_of_fp32_goes_through() -> None:
    bits = np.random.default_rng(0).integers(-(2**31), 2**31, 600, dtype=np.int32)  # NaN, infinities, denormals too
    match = match_layouts(layout({"a": (20, 30)}), layout({"a": (30, 20)}), by="leading")
    vector = torch.from_numpy(bits.view(np.float32))
    corner = bits.reshape(20, 30)[:, :20]
    np.testing.assert_array_equal(match.expand(vector).numpy().view(np.int32)[:400], corner.reshape(-1))
    filled = match.fill(torch.zeros(600), vector).numpy().view(np.int32).reshape(20, 30)
    np.testing.assert_array_equal(filled[:, :20], bits.reshape(30, 20)[:20])
    assert vector.isnan().any()


def test_results_are_of_the_type_and_device_that_came_in() -> None:
    match = match_layouts(layout({"a": (2, 3)}), layout({"a": (3, 3)}), by="leading")
    local, server = torch.empty(6, device="meta", dtype=torch.float64), torch.empty(9, device="meta")
    for result in (match.fill(local, server), match.select(local), match.expand(local)):
        assert result.device.type == "meta"
        assert result.dtype == torch.float64
    assert match.held.device.type == "cpu"


def test_vectors_of_another_size_are_refused() -> None:
    match = match_layouts(layout({"a": (2,)}), layout({"a": (3,)}), by="leading")
    for call in (
        lambda: match.fill(torch.ones(3), torch.ones(3)),
        lambda: match.fill(torch.ones(2), torch.ones(2)),
        lambda: match.expand(torch.ones(3)),
        lambda: match.place(torch.ones(3)),
    ):
        with pytest.raises(RuntimeError, match="split"):
            call()


def test_an_unknown_rule_is_refused() -> None:
    with pytest.raises(ValueError, match=r'"shape" or "leading", not \'width\''):
        match_layouts(layout({}), layout({}), by="width")


def test_a_pattern_that_fits_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no tensor of the client fits 'body.stm\*'; its first are body.stem, b"):
        match_layouts(layout({"body.stem": (1,), "b": (1,)}), layout({"body.stm": (1,)}), private=["b*", "body.stm*"])


def test_buffers_of_equal_shape_are_shared() -> None:
    ours = {"bn.mean": torch.zeros(2), "bn.count": torch.tensor(3), "wide": torch.zeros(3), "mine": torch.zeros(1)}
    theirs = {"wide": torch.zeros(4), "bn.count": torch.tensor(0), "bn.mean": torch.ones(2), "theirs": torch.zeros(1)}
    assert shared_buffers(ours, theirs) == ["bn.mean", "bn.count"]
    assert shared_buffers(ours, theirs, private=["bn.c*", "no such"]) == ["bn.mean"]


class Named(nn.Module):
    """A module under the name that it has in a backbone."""

    def __init__(self, name: str, module: nn.Module) -> None:
        super().__init__()
        for part in reversed(name.split(".")[1:]):
            outer = nn.Module()
            outer.add_module(part, module)
            module = outer
        self.add_module(name.split(".")[0], module)


def put_in(narrow: nn.Module, wide: nn.Module, name: str) -> None:
    """Writes the narrow module into the leading channels of the wide one, and zeros elsewhere."""
    ours, theirs = FlatPart(Named(name, narrow)), FlatPart(Named(name, wide))
    match = match_layouts(ours.layout, theirs.layout, by="leading")
    assert match.shared_entries == match.local_entries
    theirs.vector.copy_(match.expand(ours.vector))


@torch.no_grad()
def test_a_narrow_swin_attention_works_inside_a_wide_one() -> None:
    """Heads of 8 channels; the wide one's third head has zero weights and adds nothing."""
    torch.manual_seed(0)
    narrow, wide = (WindowAttention(8 * heads, heads, window_size=2) for heads in (2, 3))
    x = torch.randn(5, 4, 24)
    put_in(narrow, wide, "body.layers_0.blocks.0.attn")
    torch.testing.assert_close(wide(x)[..., :16], narrow(x[..., :16]))


@torch.no_grad()
def test_a_narrow_swin_patch_merging_works_inside_a_wide_one() -> None:
    torch.manual_seed(0)
    narrow, wide = (PatchMerging(width, norm_layer=lambda *_, **__: nn.Identity()) for width in (3, 5))
    x = torch.randn(2, 4, 6, 5)
    put_in(narrow, wide, "body.layers_1.downsample")
    torch.testing.assert_close(wide(x)[..., :6], narrow(x[..., :3]))


@torch.no_grad()
def test_a_narrow_decoder_s_fusion_works_inside_a_wide_one() -> None:
    torch.manual_seed(0)
    narrow, wide = (Decoder([2, 2, 2, 2], 1, channels=channels).fuse[0] for channels in (8, 16))
    put_in(narrow, wide, "fuse.0")
    x = torch.randn(2, 4, 16, 3, 3)
    torch.testing.assert_close(wide(x.flatten(1, 2))[:, :8], narrow(x[:, :, :8].flatten(1, 2)))


@pytest.mark.parametrize(
    ("local", "server", "by", "of_local", "of_server"),
    [  # per cent of each one's parameters
        ("convnext_atto", "convnext_femto", "shape", 0.0, 0.0),
        ("convnext_atto", "convnext_femto", "leading", 100.0, 69.8),
        ("convnext_atto", "convnext_tiny", "leading", 11.2, 1.4),  # MLPs of 1×1 convolutions or of linear layers
        ("resnet18", "resnet34", "shape", 100.0, 52.5),
        ("swin_tiny_patch4_window7_224", "swin_small_patch4_window7_224", "shape", 100.0, 56.3),
        ("swin_tiny_patch4_window7_224", "swin_base_patch4_window7_224", "leading", 99.95, 31.7),
    ],
)
def test_share_of_known_backbones(local: str, server: str, by, of_local: float, of_server: float) -> None:
    with torch.device("meta"):
        match = match_layouts(layout_of(FeaturePyramid(local)), layout_of(FeaturePyramid(server)), by=by)
    assert 100 * match.shared_entries / match.local_entries == pytest.approx(of_local, abs=0.05)
    assert 100 * match.shared_entries / match.server_entries == pytest.approx(of_server, abs=0.05)


@pytest.mark.parametrize(
    ("backbone", "stem"),
    [
        ("convnext_atto", ["body.stem_0.weight", "body.stem_0.bias"]),
        ("test_convnext", ["body.stem_0.weight", "body.stem_0.bias"]),
        ("swin_tiny_patch4_window7_224", ["body.patch_embed.proj.weight", "body.patch_embed.proj.bias"]),
        ("resnet18", ["body.conv1.weight"]),
        ("test_efficientnet", ["body.conv_stem.weight"]),
    ],
)
def test_the_first_convolution_is_what_reads_the_image(backbone: str, stem: list[str]) -> None:
    """Another number of input channels changes the shape of that tensor alone; all others are shared."""
    with torch.device("meta"):
        colour, depth = FeaturePyramid(backbone), FeaturePyramid(backbone, options={"in_chans": 1})
    assert first_conv(colour) == first_conv(depth) == stem
    match = match_layouts(layout_of(depth), layout_of(colour), by="shape", private=stem[:1])
    theirs = dict(zip(match.server.names, match.server.shapes, strict=True))
    ours = zip(match.local.names, match.local.shapes, strict=True)
    assert [name for name, shape in ours if theirs.get(name) != shape] == stem[:1]
    assert match.local_entries - match.shared_entries == dict(depth.named_parameters())[stem[0]].numel()


def test_without_a_convolution_there_is_no_stem() -> None:
    with pytest.raises(ValueError, match="no convolution"):
        first_conv(nn.Linear(2, 2))
