"""What Lightning Fabric is told: devices, precision, threads; and the start of a job's processes."""

import os
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
import torch.utils.deterministic
from lightning import Fabric
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.strategies.ddp import DDPStrategy
from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from fedmtl.engine.ranks import TIMEOUT
from fedmtl.errors import UserError


@dataclass
class FabricConfig:
    """Devices and number format of the computation.

    Args:
        accelerator: ``auto`` takes a GPU where there is one.
        devices: GPUs of each machine, or processes where there is no GPU; clients are spread over them. Under
            `torchrun` that of its processes counts.
        num_nodes: machines; `torchrun` or Slurm starts the processes on the others.
        reduce: how the updates of several processes are summed. ``exact``: in the order of clients, so that
            results do not depend on the number of processes; ``fast``: each process sums its own, then all at once.
        precision: ``bf16-mixed`` computes in bfloat16 where that is safe; weights and updates stay fp32.
        threads: CPU threads of a process, None for torch's choice; results repeat exactly only at a fixed number.
        workers: processes that decode and augment images, for each training process; 0 does it in that itself.
        channels_last: images lie in memory with their channels last, which GPUs convolve faster.
        compile: the model goes through `torch.compile`, which takes a minute at first; results change in last digits.
    """

    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    devices: int = 1
    num_nodes: int = 1
    reduce: Literal["exact", "fast"] = "exact"
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    threads: int | None = None
    workers: int = 0
    channels_last: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        for key, least in {"devices": 1, "num_nodes": 1, "workers": 0, "threads": 1}.items():
            value = getattr(self, key)
            if value is not None and value < least:
                raise ValueError(f"fabric.{key} must be at least {least}, not {value}")

    def launch(self) -> None:
        """Starts the job's other processes, each of which runs the same command, and connects with them.

        Does nothing where there is one process only, or where they are connected.

        Raises:
            UserError: devices are not there, or what started the processes does not fit the settings.
        """
        devices, nodes = self.devices, self.num_nodes
        if dist.is_torchelastic_launched():
            devices = int(os.environ["LOCAL_WORLD_SIZE"])
            nodes = int(os.environ["WORLD_SIZE"]) // devices
        if devices * nodes == 1 or dist.is_initialized():
            return
        try:
            # vectors on GPUs go by NCCL; encoded updates, which are in main memory, by Gloo
            backend = "cpu:gloo,cuda:nccl" if self.accelerator != "cpu" and torch.cuda.is_available() else "gloo"
            strategy = DDPStrategy(process_group_backend=backend, timeout=TIMEOUT)
            fabric = Fabric(accelerator=self.accelerator, devices=devices, num_nodes=nodes, strategy=strategy)
            if dist.is_torchelastic_launched() and nodes == 1:
                _connect(backend)
            fabric.launch()
            # Fabric's watch kills this process seconds after another has ended, be it in the middle of a save
            getattr(strategy.launcher, "procs", []).clear()
            os.environ["LOCAL_RANK"] = str(fabric.local_rank)  # Slurm has another name for it
        except Exception as error:
            raise UserError(f"fabric: {devices} devices on {nodes} nodes can't be used here: {error}") from error

    def build(self) -> Fabric:
        """The Fabric of this process's one device; other processes are launched first, if they are not yet.

        Raises:
            UserError: the accelerator is not there.
        """
        self.launch()
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats only with this; read at its start
        several = dist.is_initialized() and self.accelerator in ("auto", "cuda") and torch.cuda.is_available()
        device = [int(os.environ.get("LOCAL_RANK", 0))] if several else 1
        try:
            fabric = Fabric(
                accelerator=self.accelerator,
                devices=device,
                strategy="auto",
                precision=self.precision,
                plugins=[LightningEnvironment()],  # or it would think of the job's other processes, too
            )
        except Exception as error:
            raise UserError(f"fabric.accelerator: {self.accelerator} can't be used here: {error}") from error
        if fabric.device.type == "cuda":
            torch.backends.cudnn.benchmark = False  # its choice of kernels depends on timing
            torch.use_deterministic_algorithms(True, warn_only=True)
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        return fabric


def _connect(backend: str) -> None:
    """Connects the processes that torchrun started, apart from what they exchanged before it started them again.

    Its store lives on through restarts, and torch would find the addresses of processes that are dead.
    """
    store, rank, world = next(rendezvous("env://"))
    again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    own = PrefixStore(f"start_{again}", store)
    dist.init_process_group(backend, store=own, rank=rank, world_size=world, timeout=TIMEOUT)
