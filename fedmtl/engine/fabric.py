"""What Lightning Fabric is told: device, precision, threads."""

import os
from dataclasses import dataclass
from typing import Literal

import torch
import torch.utils.deterministic
from lightning import Fabric

from fedmtl.errors import UserError


@dataclass
class FabricConfig:
    """Device and number format of the computation.

    Args:
        accelerator: ``auto`` takes a GPU where there is one.
        precision: ``bf16-mixed`` computes in bfloat16 where that is safe; weights and updates stay fp32.
        threads: CPU threads, None for torch's choice; results repeat exactly only at a fixed number.
        workers: processes that decode and augment images; 0 does it in the main process.
    """

    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    threads: int | None = None
    workers: int = 0

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"fabric.threads must be at least 1, not {self.threads}")
        if self.workers < 0:
            raise ValueError(f"fabric.workers must be at least 0, not {self.workers}")

    def build(self) -> Fabric:
        """A single-device Fabric.

        Raises:
            UserError: the accelerator is not there.
        """
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats only with this; read at its start
        try:
            fabric = Fabric(accelerator=self.accelerator, devices=1, precision=self.precision)
        except Exception as error:
            raise UserError(f"fabric.accelerator: {self.accelerator} can't be used here: {error}") from error
        if fabric.device.type == "cuda":
            torch.backends.cudnn.benchmark = False  # its choice of kernels depends on timing
            torch.use_deterministic_algorithms(True, warn_only=True)
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        return fabric
