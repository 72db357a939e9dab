"""Several processes that train one model: FSDP2 shards its weights, every process takes a share of each step's rows.

`launch` starts them by torchrun, which names each in RANK and WORLD_SIZE; without it a process is alone and nothing
here touches torch.distributed. The weights are float32 shards and the blocks compute in the model's own precision.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Processes:
    """This process is number `rank` of `count`."""

    rank: int = 0
    count: int = 1

    def total(self, number: torch.Tensor) -> torch.Tensor:
        """The sum of a scalar over all processes."""
        if self.count > 1:
            torch.distributed.all_reduce(number)
        return number

    def agree(self, yes: bool) -> bool:
        """What the first process says, known to all."""
        if self.count == 1:
            return yes
        said = [yes]
        torch.distributed.broadcast_object_list(said, src=0)
        return said[0]

    def wait(self) -> None:
        if self.count > 1:
            torch.distributed.barrier()


ALONE = Processes()


def launch(count: int, program: Sequence[str], again: Callable[[], bool]) -> int:
    """Run a program and its arguments in `count` processes until all have ended; returns the exit status.

    When one fails the others are ended too; then all are started once more if `again` says so.
    """
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    while True:
        try:
            run.main(["--standalone", "--nproc-per-node", str(count), *program])
            return 0
        except ChildFailedError:
            if not again():
                return 1


def is_launched() -> bool:
    """Whether this process is one of those that torchrun started."""
    return "RANK" in os.environ


def start() -> Processes:
    """Join the other processes that torchrun started, one GPU each where there are GPUs; alone without torchrun."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return ALONE
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return Processes(torch.distributed.get_rank(), count)


def stop(processes: Processes) -> None:
    """Leave the others."""
    if processes.count > 1:
        torch.distributed.destroy_process_group()


def shard(model, processes: Processes) -> None:
    """Cut a transformers model's weights into one float32 share per process, in place, block by block.

    Each block is gathered when it computes, in the precision the model had; gradients are averaged in float32.
    """
    if processes.count == 1:
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    device = next(model.parameters()).device
    mesh = init_device_mesh(device.type, (processes.count,))
    computing = model.dtype
    options = {}
    if computing != torch.float32:
        policy = MixedPrecisionPolicy(param_dtype=computing, reduce_dtype=torch.float32)
        options["mp_policy"] = policy
    for block in model.get_decoder().layers:
        fully_shard(block.float(), mesh=mesh, **options)
    fully_shard(model.float(), mesh=mesh, **options)


def whole_weights(model, dtype: torch.dtype, processes: Processes) -> dict[str, torch.Tensor]:
    """{name: tensor} of the whole model on the CPU, rounded to `dtype`; empty except in the first process.

    Weights that are tied to another appear once, as transformers stores them.
    """
    weights = {}
    for name, parameter in model.named_parameters():
        tensor = parameter.detach()
        tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        if processes.rank == 0:
            weights[name] = tensor.to(dtype).cpu().contiguous()
    return weights
