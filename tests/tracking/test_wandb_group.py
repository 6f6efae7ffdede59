"""The group of a run is its name without its seed and what an agent's run adds."""

import pytest

from fedmtl.tracking.wandb_tracker import _group


@pytest.mark.parametrize(
    ("identity", "name", "group"),
    [
        (None, "warmup_None", "warmup_None"),
        (None, "dea_s3", "dea"),
        ("", "dea_", "dea_"),
        ("x1", "dea_s3_x1", "dea"),
        ("x1", "dea_s3", "dea"),
    ],
)
def test_group(identity: str | None, name: str, group: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_RUN_ID", raising=False)
    if identity is not None:
        monkeypatch.setenv("WANDB_RUN_ID", identity)
    assert _group(name) == group
