"""Training of models that outgrow a card: weights, gradients and optimizer's state shared out over ranks (FSDP2).

A run folder holds ``checkpoint-last.sharded/`` then: what torch.distributed.checkpoint writes, which any number of
ranks reads, and ``place.pth`` with the rest. When the run ends, its weights are joined in ``checkpoint-last.pth``.
"""

import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

from models.family import Generator
from models.loading.autoencoder import load_autoencoder
from models.loading.checkpoint import SHARED_SUFFIX, model_class, read_model_config
from models.loading.state import read_torch_file
from runtime import distributed
from runtime.errors import UserError
from runtime.files import flush_folder, whole
from training.options import LoopArgs
from training.state import PLACE_NAME, TrainState, find_shares, run_checkpoint
from training.task import Task


class ShardedState(TrainState):
    """As the base, each rank holding a share. UserError for what cannot be shared out."""

    def __init__(self, task: Task, args: LoopArgs, num_images: int, device: torch.device, dtype: torch.dtype) -> None:
        if not torch.distributed.is_initialized():
            raise UserError("shard shares a model out over ranks; start with torchrun --nproc_per_node=N main.py ...")
        if dtype == torch.float16:
            raise UserError("shard trains in float32 or bfloat16; change dtype, or leave shard out")
        if not isinstance(task.module, Generator) or not task.module.large_layers():
            raise UserError("this model has no layers that could be shared out; leave shard out")
        share_out(task.module.to(device), dtype)
        super().__init__(task, args, num_images, device, dtype)

    def save(self, path: Path) -> None:
        """Write the shares, called on all ranks; what was there before stays until all is written."""
        place, folder = self.place(), path.with_suffix(SHARED_SUFFIX)
        partial, old = (folder.with_name(folder.name + end) for end in (".partial", ".old"))
        if distributed.is_main():
            shutil.rmtree(partial, ignore_errors=True)
        distributed.barrier("the checkpoint")
        try:
            dcp.save(self._shares(), checkpoint_id=partial)
        except CheckpointException as error:  # no Exception; of all ranks, whichever could not write
            raise UserError(
                f"could not write {folder} ({_reason(error)}); what was there before is untouched: free some space and "
                "run the command again"
            ) from error
        if distributed.is_main():
            with whole(partial / PLACE_NAME) as temporary:
                torch.save(place, temporary)
            path.unlink(missing_ok=True)  # weights that were joined before are not these; shares can be joined again
            if folder.exists():
                shutil.rmtree(old, ignore_errors=True)
                folder.rename(old)
            partial.rename(folder)
            flush_folder(folder.parent)
            shutil.rmtree(old, ignore_errors=True)
        distributed.barrier("the checkpoint")

    def is_saved(self, path: Path) -> bool:
        if find_shares(path) is None and path.exists():
            raise UserError(f"{path.parent} holds a run without shard; leave shard out, or name another output_dir")
        return find_shares(path) is not None

    def find(self, resume: str) -> Path:
        path = run_checkpoint(resume)
        if find_shares(path) is None:
            raise UserError(
                f"no sharded run at {resume}; name the folder of one, or start from weights by weights_init"
            )
        return path

    def load(self, path: Path) -> None:
        folder = find_shares(path)
        saved, shares = read_torch_file(folder / PLACE_NAME), self._shares()
        self.check_place(saved, folder)
        groups = shares["optimizer"].pop("param_groups")  # settings of now, not of then
        _read_shares(shares, folder)
        set_model_state_dict(self.module, shares["model"])
        set_optimizer_state_dict(self.module, self.optimizer, shares["optimizer"] | {"param_groups": groups})
        self.return_to(saved)

    def join(self, path: Path) -> None:
        """Write all weights to one file, if it is not there, on all ranks; nothing can go on with it alone."""
        if distributed.from_main(path.exists()):
            return
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state = get_model_state_dict(self.module, options=options)
        if distributed.is_main():
            _write_joined(path, state, {"step": self.step, "epoch": self.epoch} | self.task.describe())

    def _shares(self) -> dict[str, Any]:
        optimizer = get_optimizer_state_dict(self.module, self.optimizer)
        return {"model": get_model_state_dict(self.module), "optimizer": optimizer}


def share_out(module: Generator, dtype: torch.dtype) -> None:
    """Share a model's weights out over all ranks, layer by layer; sums are in float32.

    Weights of layers are gathered in ``dtype``, what flows between layers stays as autocast has it, and the rest (head,
    embeddings, rotations) in float32: as without sharing.
    """
    mesh = init_device_mesh(module.device.type, (distributed.num_ranks(),))
    of_layers = None if dtype == torch.float32 else dtype
    policy = MixedPrecisionPolicy(param_dtype=of_layers, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for layer in module.large_layers():
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(module, mesh=mesh, mp_policy=MixedPrecisionPolicy(reduce_dtype=torch.float32))
    register_fsdp_forward_method(module, "training_loss")  # which needs the weights whole, as a forward pass does


def join_shares(place: str | Path) -> None:
    """Write the weights of shares, if any, to their ``checkpoint-last.pth``, which ``place`` is or holds."""
    path = run_checkpoint(place)
    shares, folder = find_shares(path), path.parent
    if shares is None or path.exists():
        return
    rest, config = read_torch_file(shares / PLACE_NAME), read_model_config(path)
    state = {"model": model_class(config)(config, load_autoencoder(config.autoenc, folder)).state_dict()}
    _read_shares(state, shares, alone=True)
    _write_joined(path, state["model"], rest)


def _read_shares(shares: dict[str, Any], folder: Path, alone: bool = False) -> None:
    """Fill tensors from a folder of shares; by all ranks, or by one process alone."""
    try:
        with warnings.catch_warnings():  # of there being one process
            warnings.simplefilter("ignore", UserWarning)
            dcp.load(shares, checkpoint_id=folder, no_dist=alone)
    except (CheckpointException, OSError, RuntimeError, ValueError, EOFError, AssertionError) as error:
        raise UserError(f"{folder} is damaged, or of another model ({_reason(error)}); move it away") from error


def _reason(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[-1]


def _write_joined(path: Path, state: dict[str, Any], rest: dict[str, Any]) -> None:
    kept = {key: value for key, value in rest.items() if key != "data_order"}  # by which others know what goes on
    with whole(path) as temporary:
        torch.save({"model": state, "model_ema": None} | kept, temporary)
