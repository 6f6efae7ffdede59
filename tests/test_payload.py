"""Payloads: exact to the bit in fp32, rounded as NumPy rounds in 16 bits, and never a crash on what is no payload."""

import struct
import tracemalloc
import zlib
from dataclasses import replace
from math import frexp, prod

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedmtl.aggregation import PartUpdate, Update
from fedmtl.payload import PayloadError, Schema, decode, dense_size, encode, encoded_size, through
from fedmtl.vector import Layout, PartState

DTYPES = [
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]
VALUES = ("fp32", "bf16", "fp16")
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


def layout_of(*shapes: tuple[int, ...]) -> Layout:
    return Layout(tuple(f"layer.{i}" for i in range(len(shapes))), tuple(map(torch.Size, shapes)))


def entries_of(kind: str, size: int, rng: np.random.Generator) -> np.ndarray:
    """Fp32 numbers of a kind."""
    normal = rng.standard_normal(size).astype(np.float32)
    bits = rng.integers(0, 2**32, size, dtype=np.uint32)
    return {
        "zero": np.zeros(size, np.float32),
        "normal": normal * np.float32(1e-3),
        "bits": bits.view(np.float32),  # with NaN and infinity
        "subnormal": (bits & np.uint32(0x807FFFFF)).view(np.float32),
        "huge": ((bits & np.uint32(0x80FFFFFF)) | np.uint32(0x7E000000)).view(np.float32),
        "largest": np.where(bits & 1, -1, 1).astype(np.float32) * np.finfo(np.float32).max,
        "almost a power of two": np.float32(2) ** rng.integers(-140, 128, size).astype(np.float32)
        * (1 - np.float32(2) ** -rng.integers(8, 25, size).astype(np.float32)),
        "not finite": np.array([np.nan, np.inf, -np.inf, -np.nan], np.float32)[bits % 4],
    }[kind]


KINDS = ["zero", "normal", "bits", "subnormal", "huge", "largest", "almost a power of two", "not finite"]


@st.composite
def parts(draw: st.DrawFn, kinds: list[str]) -> tuple[PartUpdate, Layout]:
    shapes = draw(st.lists(st.lists(st.integers(0, 7), max_size=3).map(tuple), max_size=5))
    layout = layout_of(*shapes)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    pieces = [entries_of(draw(st.sampled_from(kinds)), size, rng) for size in layout.sizes]
    delta = torch.from_numpy(np.concatenate([np.empty(0, np.float32), *pieces]))
    mask = None
    if (rho := draw(st.sampled_from([None, 0.0, 0.02, 0.2, 0.9, 1.0]))) is not None:
        mask = torch.from_numpy(rng.random(len(delta)) < rho)
        delta = delta.masked_fill(~mask, 0)
    buffers = {}
    for i, dtype in enumerate(draw(st.lists(st.sampled_from(DTYPES), max_size=3))):
        shape = draw(st.lists(st.integers(0, 4), max_size=2))
        raw = rng.integers(0, 2 if dtype == torch.bool else 256, 16 * dtype.itemsize, dtype=np.uint8)
        buffers[f"norm.{i}"] = torch.from_numpy(raw).view(dtype)[: prod(shape)].reshape(shape)
    return PartUpdate(delta, buffers, mask, draw(st.booleans())), layout


@st.composite
def updates(draw: st.DrawFn, kinds: list[str] = KINDS) -> tuple[Update, dict[str, Layout]]:
    names = draw(st.lists(st.sampled_from(["encoder", "heads.semseg", "heads.Tiefe µ"]), unique=True))
    made = {name: draw(parts(kinds)) for name in names}
    message = {
        key: {name: torch.randn(draw(st.lists(st.integers(0, 5), max_size=3))) for name in names}
        for key in draw(st.lists(st.sampled_from(["control", "reach"]), unique=True))
    }
    sent = {name: part for name, (part, _) in made.items()}
    update = Update("anna", draw(st.integers(0, 2**53)), sent, message, draw(st.booleans()))
    return update, {name: layout for name, (_, layout) in made.items()}


def schema_of(update: Update, layouts: dict[str, Layout]) -> Schema:
    return Schema({name: (layouts[name], part.buffers) for name, part in update.parts.items()})


def round_trip(update: Update, layouts: dict[str, Layout], values: str) -> Update:
    return decode(encode(update, layouts, values), schema_of(update, layouts), client=update.client)


def same_bits(a: Tensor, b: Tensor) -> bool:
    raw = [torch.cat([torch.empty(0, dtype=t.dtype), t.cpu().reshape(-1)]).view(torch.uint8) for t in (a, b)]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*raw)


def assert_same(got: Update, expected: Update, *, entries: bool = True) -> None:
    """To the bit, but for the entries where these are rounded."""
    assert (got.client, got.examples, got.healthy) == (expected.client, expected.examples, expected.healthy)
    assert list(got.parts) == list(expected.parts)
    assert list(got.message) == list(expected.message)
    for name, part in got.parts.items():
        other = expected.parts[name]
        assert not entries or same_bits(part.delta, other.delta)
        assert part.overlap is other.overlap
        assert (part.mask is None) == (other.mask is None)
        assert part.mask is None or same_bits(part.mask, other.mask)
        assert list(part.buffers) == list(other.buffers)
        assert all(same_bits(buffer, other.buffers[key]) for key, buffer in part.buffers.items())
    for key, vectors in got.message.items():
        assert list(vectors) == list(expected.message[key])
        assert all(same_bits(vector, expected.message[key][name]) for name, vector in vectors.items())


def as_bf16(x: np.ndarray) -> np.ndarray:
    """Round to nearest even on the upper 16 bits; the largest finite number at most."""
    bits = x.view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)
    largest = np.uint32(0x7F7F0000).view(np.float32)
    return np.where(np.isfinite(x), np.clip(rounded, -largest, largest), x)


def as_fp16(x: np.ndarray) -> np.ndarray:
    """Scaled so that the peak, rounded to 11 bits, lies in [2^14, 2^15), in double precision."""
    largest = 2.0**128 - 2.0**117
    with np.errstate(invalid="ignore"):  # signalling NaN
        wide = np.where(np.isfinite(x), np.clip(x.astype(np.float64), -largest, largest), x)
    peak = np.abs(wide[np.isfinite(wide)]).max(initial=0)
    rounded = float(np.round(frexp(peak)[0] * 2**11) * 2.0 ** (frexp(peak)[1] - 11))
    scale = 2.0 ** max(frexp(rounded)[1] - 15, -126)
    return ((wide / scale).astype(np.float16).astype(np.float64) * scale).astype(np.float32)


@settings(max_examples=100, deadline=None)
@given(made=updates())
def test_fp32_comes_back_to_the_bit(made: tuple[Update, dict[str, Layout]]) -> None:
    update, layouts = made
    assert_same(round_trip(update, layouts, "fp32"), update)
    assert through(update, layouts, "fp32") is update


@pytest.mark.parametrize(("values", "reference"), [("bf16", as_bf16), ("fp16", as_fp16)])
@settings(max_examples=100, deadline=None)
@given(made=updates())
def test_16_bits_are_those_of_numpy(values: str, reference, made: tuple[Update, dict[str, Layout]]) -> None:
    update, layouts = made
    got = round_trip(update, layouts, values)
    assert_same(got, update, entries=False)
    for name, part in got.parts.items():
        sizes = layouts[name].sizes
        for piece, before in zip(
            torch.split(part.delta, sizes), torch.split(update.parts[name].delta, sizes), strict=True
        ):
            expected = reference(before.numpy()) if len(before) else before.numpy()
            np.testing.assert_array_equal(piece.numpy(), expected)
            np.testing.assert_array_equal(np.isfinite(piece.numpy()), np.isfinite(before.numpy()))


@pytest.mark.parametrize("values", ["bf16", "fp16"])
@settings(max_examples=100, deadline=None)
@given(made=updates([kind for kind in KINDS if kind not in ("bits", "not finite")]))
def test_through_is_the_way_there_and_back_and_changes_nothing_twice(
    values: str, made: tuple[Update, dict[str, Layout]]
) -> None:
    update, layouts = made
    once = through(update, layouts, values)
    got = round_trip(update, layouts, values)
    assert_same(got, once)
    assert_same(round_trip(once, layouts, values), once)


def test_a_peak_that_rounds_up_scales_as_what_it_becomes() -> None:
    """Else the finest entries would be rounded again when the payload is made a second time."""
    update = Update("a", 1, {"p": PartUpdate(torch.tensor([1 - 2.0**-13, 3 * 2.0**-39, 1.0, 3 * 2.0**-39]))})
    layouts = {"p": layout_of((2,), (2,))}
    once = round_trip(update, layouts, "fp16")
    assert once.parts["p"].delta.tolist() == [1.0, 2.0**-37, 1.0, 2.0**-37]
    assert_same(round_trip(once, layouts, "fp16"), once)


@pytest.mark.parametrize("values", VALUES)
@pytest.mark.parametrize("device", DEVICES)
def test_tensors_may_be_on_any_device_and_a_mask_of_many_blocks(device: str, values: str) -> None:
    layout = layout_of((300, 500), (3,), (70_000,))
    rng = np.random.default_rng(0)
    for rho in (0.2, 0.01, 1.0, None):
        delta = torch.from_numpy(entries_of("normal", 220_003, rng))
        mask = None if rho is None else torch.from_numpy(rng.random(220_003) < rho)
        part = PartUpdate(delta if mask is None else delta.masked_fill(~mask, 0), mask=mask)
        there = replace(part, delta=part.delta.to(device), mask=None if mask is None else mask.to(device))
        update, moved = (Update("anna", 3, {"encoder": p}) for p in (part, there))
        layouts = {"encoder": layout}
        payload = encode(moved, layouts, values)
        assert payload.tobytes() == encode(update, layouts, values).tobytes()
        assert encoded_size(moved, layouts, values) == len(payload)
        got = decode(payload.tobytes(), schema_of(update, layouts), client="anna")
        on_device = through(moved, layouts, values)
        assert_same(got, on_device)
        assert on_device.parts["encoder"].delta.device.type == device
        if values == "fp32":
            assert_same(got, update)


@pytest.mark.parametrize("values", VALUES)
@settings(max_examples=60, deadline=None)
@given(made=updates())
def test_size_is_known_beforehand(values: str, made: tuple[Update, dict[str, Layout]]) -> None:
    update, layouts = made
    assert encoded_size(update, layouts, values) == len(encode(update, layouts, values))


def test_dense_size_is_that_of_everything_in_fp32() -> None:
    buffers = {"mean": torch.zeros(3), "count": torch.tensor(4)}
    parts = {"encoder": PartState(torch.zeros(15), buffers), "heads.depth": PartState(torch.zeros(2))}
    message = {"control": {"encoder": torch.zeros(15)}, "nothing": {}}
    update = Update("", 0, {name: PartUpdate(part.vector, part.buffers) for name, part in parts.items()}, message)
    layouts = {"encoder": layout_of((3, 5)), "heads.depth": layout_of((2,))}
    size = len(encode(update, layouts))
    assert dense_size(parts, message) == size
    assert dense_size({name: part.to(torch.device("meta")) for name, part in parts.items()}, message) == size


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 4000), rho=st.sampled_from([0.0, 0.01, 0.03, 1 / 32, 0.04, 0.5]), seed=st.integers(0, 99))
@example(size=256, rho=7 / 256, seed=0)
@example(size=256, rho=8 / 256, seed=0)
def test_a_mask_is_sent_in_its_shorter_form(size: int, rho: float, seed: int) -> None:
    mask = torch.zeros(size, dtype=torch.bool)
    kept = int(rho * size)
    mask[np.random.default_rng(seed).permutation(size)[:kept]] = True
    assume(kept < size)
    update, layouts = Update("a", 1, {"p": PartUpdate(torch.zeros(size), mask=mask)}), {"p": layout_of((size,))}
    payload = encode(update, layouts)
    indices = np.flatnonzero(mask).astype("<u4").tobytes()
    bits = np.packbits(mask, bitorder="little").tobytes()
    expected = min([bits, indices], key=len)
    assert payload[64 : 64 + len(expected)].tobytes() == expected
    assert payload[34] == (3 if expected is indices else 2)
    padded = -(-len(expected) // 8) * 8 + -(-4 * kept // 8) * 8
    assert len(payload) == 64 + padded


def test_a_whole_mask_costs_nothing() -> None:
    layouts = {"p": layout_of((100,))}
    with_mask = Update("a", 1, {"p": PartUpdate(torch.ones(100), mask=torch.ones(100, dtype=torch.bool))})
    assert encoded_size(with_mask, layouts) == encoded_size(Update("a", 1, {"p": PartUpdate(torch.ones(100))}), layouts)
    assert_same(round_trip(with_mask, layouts, "fp16"), with_mask)


def tiny() -> tuple[Update, dict[str, Layout]]:
    mask = torch.tensor([True, True, False, True])
    part = PartUpdate(torch.tensor([1.0, -2.0, 0.0, 0.5]), {"n": torch.tensor(7)}, mask, overlap=True)
    update = Update("anna", 258, {"enc": part}, {"reach": {"enc": torch.tensor([1.5])}})
    return update, {"enc": Layout(("w", "b"), (torch.Size((3, 1)), torch.Size(())))}


def test_format_byte_for_byte() -> None:
    fingerprint = zlib.crc32(b"w float32 3x1\nb float32 \nn int64 \n")
    body = b"".join(
        [
            bytes.fromhex("0300 02 01") + fingerprint.to_bytes(4, "little"),  # name of 3 bytes, bits, overlap
            bytes.fromhex("0400000000000000 0300000000000000"),  # 3 of 4 entries
            b"enc\0\0\0\0\0",
            bytes.fromhex("0b 00000000000000"),  # first, second and fourth
            bytes.fromhex("00000039 00000038"),  # scales 2^-13 and 2^-15
            bytes.fromhex("0070 00f4 0074 0000"),  # 8192, -16384; 16384
            bytes.fromhex("0700000000000000"),  # buffer n
            bytes.fromhex("05000000 01000000") + b"reach\0\0\0",
            bytes.fromhex("03000000 01000000") + b"enc\0\0\0\0\0",
            bytes.fromhex("0100000000000000 0000c03f 00000000"),  # shape (1,), 1.5
        ]
    )
    head = b"FMTL" + bytes.fromhex("0100 01 02 9000000000000000 0201000000000000 0100 0100")
    payload = head + zlib.crc32(head + body).to_bytes(4, "little") + body
    update, layouts = tiny()
    assert encode(update, layouts, "fp16").tobytes() == payload
    assert_same(decode(payload, schema_of(update, layouts), client="anna"), update)


def test_payloads_come_in_any_buffer_and_are_not_held_on_to() -> None:
    update, layouts = tiny()
    payload = encode(update, layouts)
    shifted = np.empty(len(payload) + 1, np.uint8)[1:]  # not aligned
    shifted[:] = payload
    for data in (payload, payload.tobytes(), memoryview(payload), bytearray(payload), shifted):
        assert_same(decode(data, schema_of(update, layouts), client="anna"), update)
    got = decode(payload, schema_of(update, layouts), client="anna")
    payload[:] = 0
    assert_same(got, update)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"held": torch.ones(4, dtype=torch.bool)}, "server's coordinates"),
        ({"delta": torch.zeros(5)}, r"float32 \(4,\), not torch.float32 \(5,\)"),
        ({"delta": torch.zeros(4, dtype=torch.float64)}, r"float32 \(4,\), not torch.float64"),
        ({"mask": torch.ones(3, dtype=torch.bool)}, r"enc must be torch.bool \(4,\), not torch."),
        ({"mask": torch.ones(4, dtype=torch.uint8)}, r"enc must be torch.bool \(4,\), not torch."),
    ],
)
def test_what_can_t_be_encoded_is_refused(change: dict, match: str) -> None:
    update, layouts = tiny()
    update.parts["enc"] = replace(update.parts["enc"], **change)
    with pytest.raises(ValueError, match=match):
        encode(update, layouts)


def test_unknown_values_and_other_messages_are_refused() -> None:
    update, layouts = tiny()
    with pytest.raises(ValueError, match="fp32, bf16, fp16, not 'fp8'"):
        encode(update, layouts, "fp8")
    update.message["reach"]["enc"] = torch.ones(1, dtype=torch.float64)
    with pytest.raises(ValueError, match="message reach of enc must be float32"):
        encode(update, layouts)


def sealed(payload: bytes) -> bytes:
    """With a checksum and a length that fit."""
    payload = payload[:8] + struct.pack("<Q", len(payload)) + payload[16:]
    return payload[:28] + struct.pack("<I", zlib.crc32(payload[32:], zlib.crc32(payload[:28]))) + payload[32:]


def overwritten(payload: bytes, at: int, new: bytes) -> bytes:
    return payload[:at] + new + payload[at + len(new) :]


@pytest.mark.parametrize(
    ("at", "new", "match"),
    [
        (0, b"PK\3\4", "begins with b'PK"),
        (4, b"\2", "version 2"),
        (6, b"\2", "healthy is 2"),
        (7, b"\3", "values 3"),
        (16, b"\xff" * 8, "examples 18446744073709551615"),
        (24, b"\0", "0 parts"),
        (24, b"\2", "2 parts"),
        (26, b"\x11", "17 messages"),
        (26, b"\0", "144 bytes, its fields take 96"),
        (26, b"\2", "end in a field"),
        (32, b"\0\2", "a name of 512 bytes"),
        (34, b"\0", "can't keep 3 of 4 entries with mask 0"),
        (34, b"\1", "with mask 1"),
        (34, b"\3", "with mask 3"),
        (34, b"\4", "with mask 4"),
        (35, b"\2", "overlap 2"),
        (36, b"\0", "other tensors or buffers"),
        (40, b"\5", r"other tensors or buffers than expected \(5 entries, not 4\)"),
        (48, b"\5", "can't keep 5 of 4"),
        (48, b"\2", "does not mark 2 of 4"),
        (56, b"\xff\n\0", r"part '\\\\xff\\n\\x00' is not expected"),
        (64, b"\x09", "does not mark 3 of 4"),
        (64, b"\x1b", "does not mark 3 of 4"),
        (72, struct.pack("<f", 0), "scale"),
        (72, struct.pack("<f", -1), "scale"),
        (72, struct.pack("<f", 3), "scale"),
        (76, struct.pack("<f", np.inf), "scale"),
        (76, struct.pack("<f", np.nan), "scale"),
        (76, bytes.fromhex("0100807f"), "scale"),  # a signalling NaN
        (100, b"\2", "for 2 parts"),
        (112, b"\4", "part 'enc.x00' comes twice"),
        (116, b"\x09", "in 9 dimensions"),
        (116, b"\2", r"shape \[1, 1069547520\], over 1028"),
        (120, b"x", "part 'xnc'"),
        (128, b"\xff" * 8, "over 1028 entries"),
        (128, b"\5\4", r"shape \[1029\], over 1028"),
        (128, b"\3", "end in a field"),
    ],
)
def test_every_field_is_checked(at: int, new: bytes, match: str) -> None:
    update, layouts = tiny()
    damaged = sealed(overwritten(encode(update, layouts, "fp16").tobytes(), at, new))
    with pytest.raises(PayloadError, match=match) as caught:
        decode(damaged, schema_of(update, layouts), client="anna")
    assert str(caught.value).startswith("payload of anna: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("at", [*range(4, 7), *range(8, 28, 3), *range(28, 144, 7)])
def test_damage_on_the_way_is_found(at: int) -> None:
    update, layouts = tiny()
    payload = encode(update, layouts, "fp16")
    payload[at] ^= 4
    with pytest.raises(PayloadError):
        decode(payload, schema_of(update, layouts), client="anna")


@pytest.mark.parametrize("size", [0, 1, 31, 32, 40, 100, 136, 143])
def test_cut_payloads_are_refused(size: int) -> None:
    update, layouts = tiny()
    payload = encode(update, layouts, "fp16").tobytes()
    for data in (payload[:size], sealed(payload[:size]) if size >= 32 else payload[:size]):
        with pytest.raises(PayloadError):
            decode(data, schema_of(update, layouts), client="anna")
    for more in (b"\0", b"\0" * 8):
        with pytest.raises(PayloadError, match="its fields take"):
            decode(sealed(payload + more), schema_of(update, layouts), client="anna")


@pytest.mark.parametrize("wrong", [[5, 5], [7, 3], [3, 100], [3, 2**32 - 1]])
def test_indices_have_to_rise_within_the_part(wrong: list[int]) -> None:
    mask = torch.zeros(100, dtype=torch.bool)
    mask[[3, 5]] = True
    update, layouts = Update("a", 1, {"p": PartUpdate(torch.zeros(100), mask=mask)}), {"p": layout_of((100,))}
    payload = encode(update, layouts).tobytes()
    assert payload[64:72] == struct.pack("<II", 3, 5)
    with pytest.raises(PayloadError, match="do not rise within 100"):
        decode(sealed(overwritten(payload, 64, struct.pack("<II", *wrong))), schema_of(update, layouts), client="a")


def test_a_bool_buffer_holds_nothing_else() -> None:
    part = PartUpdate(torch.zeros(1), {"flag": torch.tensor([True, False])})
    update, layouts = Update("a", 1, {"p": part}), {"p": layout_of((1,))}
    payload = encode(update, layouts).tobytes()
    assert payload[72:74] == b"\1\0"
    with pytest.raises(PayloadError, match="bool buffer flag"):
        decode(sealed(overwritten(payload, 73, b"\2")), schema_of(update, layouts), client="a")


def test_a_part_may_not_come_twice_or_be_another() -> None:
    empty = PartUpdate(torch.zeros(0))
    update, layouts = Update("a", 1, {"p": empty, "q": empty}), {"p": layout_of((0,)), "q": layout_of((0,))}
    payload = encode(update, layouts).tobytes()
    with pytest.raises(PayloadError, match="'p' is not expected, or comes twice"):
        decode(sealed(payload.replace(b"q", b"p")), schema_of(update, layouts), client="a")
    with pytest.raises(PayloadError, match="'r' is not expected"):
        decode(sealed(payload.replace(b"q", b"r")), schema_of(update, layouts), client="a")


def test_names_shapes_and_dtypes_have_to_agree() -> None:
    update, layouts = tiny()
    payload = encode(update, layouts)
    layout, buffers = layouts["enc"], {"n": torch.tensor(7)}
    others = [
        (replace(layout, names=("w", "c")), buffers),
        (replace(layout, shapes=(torch.Size((1, 3)), torch.Size(()))), buffers),
        (layout, {"m": torch.tensor(7)}),
        (layout, {"n": torch.tensor([7])}),
        (layout, {"n": torch.tensor(7.0, dtype=torch.float64)}),
        (layout, {}),
    ]
    for other in others:
        with pytest.raises(PayloadError, match="other tensors or buffers"):
            decode(payload, Schema({"enc": other}), client="anna")
    assert_same(
        decode(payload, Schema({"enc": (layout, {"n": torch.tensor(0, device="meta")})}), client="anna"), update
    )


def test_no_more_examples_are_believed_than_the_schema_says() -> None:
    update, layouts = tiny()
    payload = encode(update, layouts)
    schema = schema_of(update, layouts)
    assert decode(payload, replace(schema, examples=258), client="anna").examples == 258
    with pytest.raises(PayloadError, match="examples 258"):
        decode(payload, replace(schema, examples=257), client="anna")


def victims() -> tuple[Schema, list[bytes]]:
    """Payloads of every form of a schema."""
    layouts = {"encoder": layout_of((80, 90), (0,), (800,)), "heads.depth": layout_of((30,))}
    buffers = {"mean": torch.ones(6), "count": torch.tensor(7), "flag": torch.tensor([True, False])}
    rng = np.random.default_rng(0)
    made = []
    for values in VALUES:
        for rho in (0.01, 0.2, 1.0, None):
            mask = None if rho is None else torch.from_numpy(rng.random(8000) < rho)
            encoder = PartUpdate(torch.from_numpy(entries_of("normal", 8000, rng)), buffers, mask)
            sent = {"encoder": encoder, "heads.depth": PartUpdate(torch.zeros(30))}
            message = {"control": {"encoder": torch.zeros(8000)}, "reach": {"heads.depth": torch.ones(1)}}
            made.append(encode(Update("a", 9, sent, message if rho == 0.2 else {}), layouts, values).tobytes())
    return Schema({"encoder": (layouts["encoder"], buffers), "heads.depth": (layouts["heads.depth"], {})}), made


SCHEMA, PAYLOADS = victims()
NUMBERS = [0, 1, 2, 3, 4, 7, 8, 255, 256, 2**15, 2**16 - 1, 2**31, 2**32 - 1, 2**53, 2**63, 2**64 - 1]
STEP = struct.Struct("<BBBB8s")


def changed(payload: bytes, step: bytes) -> bytes:
    """A payload after one of six kinds of damage, mostly near its ends, where its fields lie."""
    kind, region, place, number, raw = STEP.unpack(step)
    ends = [place % 128, len(payload) - 1 - place % 128, int.from_bytes(raw, "little")]
    at = max(ends[region % 3], 0) % (len(payload) + 1)
    size = 1 << number % 4
    match kind % 6:
        case 0:
            return overwritten(payload, at, bytes([payload[at] ^ (1 << number % 8)]) if payload[at:] else b"")
        case 1:
            field = NUMBERS[number // 4 % 16] % 256**size
            return overwritten(payload, at - at % size, field.to_bytes(size, "little"))
        case 2:
            return overwritten(payload, at, raw[:size])
        case 3:
            return payload[:at]
        case 4:
            return payload + (payload[32:] if number % 2 else raw * (number % 5))
        case _:
            return payload[:at] + payload[at + 8 * (number % 20) :]


@st.composite
def fuzzed(draw: st.DrawFn) -> bytes:
    """Random bytes, or a damaged payload, mostly with a length and a checksum that fit again."""
    which, *steps = draw(st.lists(st.binary(min_size=STEP.size, max_size=STEP.size), min_size=1, max_size=4))
    if not steps:
        return draw(st.binary(max_size=400))
    payload = PAYLOADS[which[0] % len(PAYLOADS)]
    for step in steps:
        payload = changed(payload, step)
    return payload if len(payload) < 32 or which[1] % 5 == 1 else sealed(payload)


def check_fuzzed(data: bytes) -> None:
    layouts = {name: layout for name, (layout, _) in SCHEMA.parts.items()}
    error, update = "", None
    tracemalloc.start()
    try:
        update = decode(data, SCHEMA, client="a")
    except PayloadError as refusal:
        error = str(refusal)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    entries = sum(sum(layout.sizes) for layout in layouts.values())
    assert peak < 12 * entries + 3 * len(data) + 30_000
    assert "\n" not in error
    assert len(error) < 1000
    if update is not None:
        again = decode(encode(update, layouts), SCHEMA, client="a")
        assert_same(again, update)


@settings(max_examples=300, deadline=None)
@given(data=fuzzed())
def test_fuzzed_payloads_are_refused_or_read(data: bytes) -> None:
    check_fuzzed(data)


@pytest.mark.slow
@settings(max_examples=500, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(many=st.lists(fuzzed(), min_size=20, max_size=20))
def test_ten_thousand_fuzzed_payloads(many: list[bytes]) -> None:
    for data in many:
        check_fuzzed(data)
