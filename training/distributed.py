"""Training in several processes, one a device, that torchrun started: every batch is shared out among them.

Each process holds the network, runs its share of a batch, and gets the outputs of the others, so the loss of the whole
batch is computed in every process as it would be in one; only the gradients through the own rows are its own, and
DistributedDataParallel adds those up. An objective may therefore be any deterministic function of output and labels.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Generator, Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model_store.errors import BundleError
from model_store.networks import NetworkOutput
from training.errors import DataError, RecipeError, TrainingError

PATIENCE = timedelta(hours=12)
"""How long a process waits for another, which may be reading a large set; torchrun itself sees one that has died."""
BACKENDS = "cpu:gloo,cuda:nccl"

Result = TypeVar("Result")


class Processes:
    """This process among those that train together: number `rank` of `count`; alone, nothing here does anything.

    What the processes agree on goes through the first: it alone reads and writes the run's folder, prints, and raises
    what went wrong, while the others end with status 1.
    """

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self.rank = rank
        self.count = count

    @property
    def is_first(self) -> bool:
        """Whether this is the process that reads, writes and tells for all."""
        return self.rank == 0

    def first_does(self, action: Callable[[], Result]) -> Result:
        """Run `action` in the first process; return its result, which can be pickled, in every one."""
        if self.count == 1:
            return action()
        outcome, error = _outcome(action) if self.is_first else (None, None)
        box: list[tuple[Any, bool]] = [(outcome, error is not None)]
        dist.broadcast_object_list(box, src=0)
        result: Result
        result, failed = box[0]
        if failed:
            raise error or SystemExit(1)
        return result

    def each_does(self, action: Callable[[], Result]) -> Result:
        """Run `action` in every process; where it fails in one, fail in all."""
        if self.count == 1:
            return action()
        result: Result
        result, error = _outcome(action)
        errors: list[Exception | None] = [None] * self.count
        dist.all_gather_object(errors, error)
        for rank, failed in enumerate(errors):
            if failed is not None:
                raise self._told_by_first(type(failed)(f"in process {rank}: {failed}") if rank else failed)
        return result

    def require_same(self, what: str, value: str) -> None:
        """Refuse processes that would train on different things.

        Raises:
            DataError: `value` differs from the first process's.
        """
        if self.count == 1:
            return
        values: list[str] = [""] * self.count
        dist.all_gather_object(values, value)
        for rank, other in enumerate(values):
            if other != values[0]:
                message = f"{what} is {other} in process {rank}, {values[0]} in the first; give every machine the same"
                raise self._told_by_first(DataError(message))

    def first_fills(self, network: nn.Module, fill: Callable[[], None]) -> None:
        """Let the first process fill `network` in place, and the others take over its parameters and buffers."""
        state = self.first_does(lambda: _filled(network, fill))
        if not self.is_first:
            network.load_state_dict(state)

    def require_divisible(self, what: str, size: int) -> None:
        """Refuse a batch that cannot be shared out evenly.

        Raises:
            RecipeError: `size` is no multiple of the number of processes.
        """
        if size % self.count:
            near = sorted({max(size // self.count, 1) * self.count, (size // self.count + 1) * self.count})
            raise RecipeError(
                f"{what} is {size}, of all processes together, and {self.count} of them cannot share it evenly; take a "
                f"multiple of {self.count}, such as {' or '.join(map(str, near))}, or another number of processes"
            )

    def require_last_share(self, images: int, batch_size: int) -> None:
        """Refuse epochs whose last batch, of what is left, has no image for some process.

        Raises:
            DataError: it has fewer than there are processes.
        """
        if 0 < (left := images % batch_size) < self.count:
            raise DataError(
                f"the last batch of an epoch has {left} of {images} images (batch_size {batch_size}), fewer than there "
                f"are processes ({self.count}); change batch_size or the number of processes"
            )

    def share(self, size: int) -> slice:
        """Return which of `size` rows are this process's: neighbours, by rank, as many as any other's or one more."""
        return slice(self.rank * size // self.count, (self.rank + 1) * size // self.count)

    def own_generator(self, generator: Generator) -> Generator:
        """Return a generator of this process's own, fixed by the common one's seed; alone it is the common one."""
        if self.count == 1:
            return generator
        return Generator(generator.device).manual_seed(self.own_seed(generator.initial_seed()))

    def own_seed(self, seed: int) -> int:
        """Return a seed of this process's own, so that no two draw the same; alone it is `seed`."""
        if self.count == 1:
            return seed
        digest = hashlib.sha256(f"{seed}/{self.rank}".encode()).digest()
        return int.from_bytes(digest[:8], "big") >> 1

    def parallel(self, network: nn.Module, device: torch.device) -> nn.Module:
        """Return what runs `network`, on `device` already, and adds the processes' gradients up."""
        return network if self.count == 1 else DistributedDataParallel(with_shared_batch_norm(network, device))

    def gather(self, output: NetworkOutput, labelled: int) -> NetworkOutput:
        """Return the output of the whole batch, in the order of one process; gradients flow through the own rows.

        output: of this process's share. labelled: in-distribution images of the whole batch.
        """
        if self.count == 1:
            return output
        return NetworkOutput(*(self._gather_rows(rows, labelled) for rows in output))

    def backward(self, loss: Tensor) -> None:
        """Leave the gradients of the whole batch's loss in every process; they are averaged, and should be summed."""
        (loss * self.count if self.count > 1 else loss).backward()  # type: ignore[no-untyped-call]

    def leave_to_first(self) -> None:
        """End every process but the first, with status 0; that one goes on alone."""
        if self.count == 1:
            return
        dist.destroy_process_group()
        if not self.is_first:
            raise SystemExit(0)
        self.count = 1

    def _gather_rows(self, own: Tensor, labelled: int) -> Tensor:
        shares = [Processes(rank, self.count).share(labelled) for rank in range(self.count)]
        sizes = [share.stop - share.start for share in shares]
        outliers = len(own) - sizes[self.rank]  # as many in every process
        padded = own.new_zeros(max(sizes) + outliers, *own.shape[1:])
        padded[: len(own)] = own.detach()
        gathered = [torch.empty_like(padded) for _ in range(self.count)]
        dist.all_gather(gathered, padded)
        parts = [rows[: size + outliers] for rows, size in zip(gathered, sizes, strict=True)]
        parts[self.rank] = own
        by_role = [part.tensor_split((size,)) for part, size in zip(parts, sizes, strict=True)]
        return torch.cat([role for roles in zip(*by_role, strict=True) for role in roles])

    def _told_by_first(self, error: Exception) -> BaseException:
        return error if self.is_first else SystemExit(1)


ALONE = Processes()


def tells() -> bool:
    """Whether this process is the one that tells the user what went wrong: the first, or the only one."""
    return not dist.is_torchelastic_launched() or os.environ["RANK"] == "0"


def require_alone(command: str) -> None:
    """Refuse torchrun for a command whose trainings do not share their batches.

    Raises:
        TrainingError: it started several processes.
    """
    if dist.is_torchelastic_launched() and int(os.environ["WORLD_SIZE"]) > 1:
        raise TrainingError(
            f"ood-train {command} runs in one process, and torchrun started {os.environ['WORLD_SIZE']}; run it without "
            "torchrun, with --device where there are several GPUs"
        )


@contextmanager
def joined() -> Iterator[Processes]:
    """Join the processes that torchrun started; without torchrun this one is alone."""
    if not dist.is_torchelastic_launched() or int(os.environ["WORLD_SIZE"]) == 1:
        yield ALONE
        return
    dist.init_process_group(BACKENDS if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    yield Processes(dist.get_rank(), dist.get_world_size())
    if dist.is_initialized():  # not after an error: others may not have met it
        dist.destroy_process_group()


def own_device(device: torch.device, processes: Processes) -> torch.device:
    """Return this process's device: of several CUDA devices of a machine each process takes one.

    Raises:
        TrainingError: one device is named for several processes, or there are fewer devices than processes.
    """
    if processes.count == 1 or device.type != "cuda":
        return device
    local_rank, local_count = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if device.index is not None and local_count > 1:
        raise TrainingError(f"--device is {device} for {local_count} processes; give cuda, and each takes one device")
    if local_count > (found := torch.cuda.device_count()):
        raise TrainingError(
            f"{local_count} processes on this machine, where PyTorch finds {found} CUDA devices; start at most one "
            "a device (--nproc-per-node), or give --device cpu"
        )
    own = torch.device("cuda", local_rank)
    torch.cuda.set_device(own)
    return own


def with_shared_batch_norm(network: nn.Module, device: torch.device) -> nn.Module:
    """Let batch norm take its statistics of all processes' shares, in place; names and values of weights stay.

    On the CPU, where PyTorch cannot, each process normalises by its own share, and the first one's running means stay.
    """
    if device.type != "cuda":
        return network
    shared: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    return shared


def _outcome(action: Callable[[], Result]) -> tuple[Any, Exception | None]:
    """Run `action`; return its result, or the error that a user can mend."""
    try:
        return action(), None
    except (TrainingError, BundleError, OSError) as err:
        return None, err


def _filled(network: nn.Module, fill: Callable[[], None]) -> dict[str, Tensor]:
    fill()
    return {key: value.cpu() for key, value in network.state_dict().items()}
