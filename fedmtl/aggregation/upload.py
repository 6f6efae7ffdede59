"""From what training gave to what a client sends: the upload transforms, one after the other."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedmtl.aggregation.base import Sending, UploadTransform
from fedmtl.aggregation.update import PartUpdate
from fedmtl.vector import Layout

Memory = dict[str, dict[str, Tensor]]  # what transforms keep for a client, by place of the transform and name


def transform_upload(
    transforms: Sequence[UploadTransform],
    updates: Mapping[str, PartUpdate],
    layouts: Mapping[str, Layout],
    memory: Memory,
    *,
    client: str,
    round: int,
    rounds: int,
    seed: int,
) -> tuple[dict[str, PartUpdate], Memory]:
    """The updates to send instead, by part, and the memory to keep.

    Args:
        transforms: applied in order; one whose `part` is ``model`` sees all parts as one vector, encoder first.
        updates: finite updates by part; they may be changed in place.
        layouts: where each tensor lies in each part.
        memory: what the transforms kept for this client; it is not changed.
        client: the client's name.
        round: number of the round, from 1.
        rounds: rounds of the whole run.
        seed: the run's seed.
    """
    sent = dict(updates)
    kept: Memory = {}
    for place, transform in enumerate(transforms):
        names = [name for name in sent if name == "encoder" or transform.part == "model"]
        layout = layouts[names[0]] if len(names) == 1 else joined_layout({name: layouts[name] for name in names})
        own = dict(memory.get(str(place), {}))
        sending = Sending(layout, client, round, rounds, seed, place, own)
        update = transform(join([sent[name] for name in names]), sending)
        sent |= dict(zip(names, split(update, [sent[name] for name in names]), strict=True))
        if own:
            kept[str(place)] = own
    return sent, kept


def joined_layout(layouts: Mapping[str, Layout]) -> Layout:
    """The tensors of several parts one behind the other, their names after the part's."""
    names = (f"{part}.{name}" for part, layout in layouts.items() for name in layout.names)
    return Layout(tuple(names), tuple(shape for layout in layouts.values() for shape in layout.shapes))


def join(updates: Sequence[PartUpdate]) -> PartUpdate:
    """Several parts' updates as one; what no transform masked counts as kept."""
    if len(updates) == 1:
        return updates[0]
    mask = None
    if any(update.mask is not None for update in updates):
        masks = [torch.ones_like(u.delta, dtype=torch.bool) if u.mask is None else u.mask for u in updates]
        mask = torch.cat(masks)
    return PartUpdate(torch.cat([u.delta for u in updates]), mask=mask, overlap=any(u.overlap for u in updates))


def split(update: PartUpdate, parts: Sequence[PartUpdate]) -> list[PartUpdate]:
    """The way back; buffers are those of `parts`."""
    sizes = [part.delta.numel() for part in parts]
    masks = [None] * len(parts) if update.mask is None else torch.split(update.mask, sizes)
    return [
        PartUpdate(delta, part.buffers, mask, update.overlap)
        for delta, mask, part in zip(torch.split(update.delta, sizes), masks, parts, strict=True)
    ]
