"""All that changes while a run trains, and the file that it goes on from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from timm.optim import param_groups_weight_decay
from timm.utils import ModelEmaV3
from torch import Tensor
from torch.distributed.tensor import DTensor

from models.loading.checkpoint import CHECKPOINT_NAME, SHARED_SUFFIX, find_checkpoint
from models.loading.state import read_torch_file
from runtime import distributed
from runtime.device import fuses_optimizer
from runtime.errors import UserError
from runtime.files import located, whole
from training.options import LoopArgs
from training.task import Task

PLACE_NAME = "place.pth"


class TrainState:
    """Weights, their average, the optimizer, and the place in the data.

    ``dtype`` is what the loss is computed in; float16 takes loss scaling.
    """

    def __init__(self, task: Task, args: LoopArgs, num_images: int, device: torch.device, dtype: torch.dtype) -> None:
        self.task, self.args, self.num_images = task, args, num_images
        self.module = task.module.to(device).train()
        groups = param_groups_weight_decay(self.module, args.weight_decay or 1.0)  # of 0 it makes other groups
        for group in groups:
            group["weight_decay"] = args.weight_decay if group["weight_decay"] else 0.0
        fused = not args.shard and fuses_optimizer(device)
        self.optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=tuple(args.betas), fused=fused)
        self.ema = ModelEmaV3(self.module, decay=args.ema_decay, use_warmup=args.ema_warmup) if args.ema else None
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        self.steps_per_epoch = count_steps(num_images, args)
        self.step, self.epoch, self.step_in_epoch = 0, 0, 0  # updates; whole passes over the data; updates since those
        self.logged_step, self.loss_sum = 0, torch.zeros((), device=device)  # the last that was logged, losses since
        self.first_bad_step = torch.full((), -1, device=device)

    @property
    def progress(self) -> float:
        """Epochs so far, with the fraction of the one that is under way."""
        return self.epoch + self.step_in_epoch / self.steps_per_epoch

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return self.args.lr_at(self.progress, self.steps_per_epoch)

    def update(self, rate: float) -> None:
        """Change the weights by the gradients that were gathered."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:  # told the step, it copies the weights in its first two updates
            self.ema.update(self.module, step=self.step if self.args.ema_warmup else None)
        self.step, self.step_in_epoch = self.step + 1, self.step_in_epoch + 1

    def mean_loss(self) -> Tensor:
        """Of this rank's steps since the last call."""
        mean = self.loss_sum / (self.step - self.logged_step)
        self.loss_sum, self.logged_step = torch.zeros_like(self.loss_sum), self.step
        return mean

    def note_bad(self, bad: Tensor, step: int) -> None:
        """Remember the first step whose loss or weights are bad, without waiting for the device."""
        self.first_bad_step = torch.where(bad & (self.first_bad_step < 0), step, self.first_bad_step)

    def check_finite(self, weights: bool = False) -> None:
        """Stop every rank by a UserError, before anything bad is saved, if any noted or now finds it."""
        if weights:
            self.note_bad(
                ~torch.stack([local(p).isfinite().all() for p in self.module.parameters()]).all(), self.step - 1
            )
        found = distributed.everyones(int(self.first_bad_step), "the end of a step")
        bad = [(step, rank) for rank, step in enumerate(found) if step >= 0]
        if bad:
            step, rank = min(bad)
            raise UserError(
                f"the loss or a weight is not finite at step {step} (rank {rank}, learning rate "
                f"{self.learning_rate:.2e}); the last checkpoint is from before: lower lr, set clip_grad 1 or dtype "
                "float32, and run again"
            )

    def save(self, path: Path) -> None:
        """Write a checkpoint; called on all ranks, rank 0 writes."""
        place = self.place()
        if not distributed.is_main():
            return
        content = {
            "model": self.module.state_dict(),
            "model_ema": None if self.ema is None else self.ema.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            **place,
        }
        with whole(path) as temporary:
            torch.save(content, temporary)

    def is_saved(self, path: Path) -> bool:
        """Whether there is a checkpoint to go on from. UserError for one of a run that was shared out over ranks."""
        if find_shares(path) is not None:
            raise UserError(f"{path.parent} holds a run that was shared out; add --shard, or name another output_dir")
        return path.exists()

    def find(self, resume: str) -> Path:
        """The checkpoint that a new run goes on from. UserError if there is none."""
        return find_checkpoint(resume)

    def join(self, path: Path) -> None:
        """Have all weights in the one file of a run that ends; here they are."""

    def load(self, path: Path) -> None:
        """Go on from a checkpoint, or refuse it."""
        saved = read_torch_file(path)
        shapes = {name: tensor.shape for name, tensor in self.module.state_dict().items()}
        if "data_order" not in saved or {name: t.shape for name, t in saved["model"].items()} != shapes:
            raise UserError(
                f"{path} is of no run of this model; name one, or start from its weights by {self.task.starts_by}"
            )
        if (saved["model_ema"] is None) != (self.ema is None):
            kind = "without" if self.ema else "with"
            raise UserError(f"{path} was trained {kind} ema; keep it so, or name another output_dir")
        self.check_place(saved, path)
        self.module.load_state_dict(saved["model"])
        groups = self.optimizer.state_dict()["param_groups"]  # betas and weight decay of now, not of then
        self.optimizer.load_state_dict({"state": self._moments_of(saved["optimizer"]), "param_groups": groups})
        if saved["scaler"]:  # empty but after float16
            self.scaler.load_state_dict(saved["scaler"])
        if self.ema is not None:
            self.ema.module.load_state_dict(saved["model_ema"])
        self.return_to(saved)

    def _moments_of(self, optimizer: Mapping[str, Any]) -> dict[int, Any]:
        """A saved optimizer's state by the number of each weight in today's groups.

        Runs without weight decay once had one group, which numbered the weights in the order of the module.
        """
        if len(optimizer["param_groups"]) == len(self.optimizer.param_groups):
            return optimizer["state"]
        grouped = [id(parameter) for group in self.optimizer.param_groups for parameter in group["params"]]
        trained = [id(parameter) for parameter in self.module.parameters() if parameter.requires_grad]
        return {grouped.index(trained[number]): state for number, state in optimizer["state"].items()}

    def place(self) -> dict[str, Any]:
        """All of a checkpoint but the weights and what is kept of each; called on all ranks. None of it is bad."""
        self.check_finite(weights=True)
        self.loss_sum = distributed.add_up(self.loss_sum) / distributed.num_ranks()  # the file holds one for all ranks
        return {
            **{name: getattr(self, name) for name in ("step", "epoch", "step_in_epoch", "loss_sum", "logged_step")},
            "data_order": self._data_order(),
            "task": self.task.state(),
            **self.task.describe(),
        }

    def return_to(self, saved: dict[str, Any]) -> None:
        """Take back what ``place`` gave."""
        self.task.restore(saved.get("task", {}))
        self.step, self.epoch, self.step_in_epoch = saved["step"], saved["epoch"], saved["step_in_epoch"]
        self.loss_sum.copy_(saved["loss_sum"])
        self.logged_step = saved.get("logged_step", self.step - self.step % self.args.log_freq)  # earlier files lack it

    def check_place(self, saved: dict[str, Any], path: Path) -> None:
        """Refuse a place that this run cannot go on from."""
        before, now = saved["data_order"], self._data_order()
        if saved["step_in_epoch"] and before != now:
            name = next(name for name in now if now[name] != before.get(name))
            raise UserError(
                f"{path} stopped inside an epoch with {name.replace('_', ' ')} {before.get(name)}, not {now[name]}; "
                "go on with the same, or name another output_dir"
            )
        described = self.task.describe()
        for key, other in (("class_keys", "on other classes than the data's"), ("start_hash", "from another start")):
            if saved.get(key) != described.get(key):
                raise UserError(f"{path} was trained {other}; put them back, or name another output_dir")

    def _data_order(self) -> dict[str, int]:
        """What decides which images a step of an epoch sees."""
        return {"images": self.num_images, "images_a_step": images_a_step(self.args), "seed": self.args.seed}


def run_checkpoint(place: str | Path) -> Path:
    """The checkpoint of a run, which ``place`` is or whose folder it is, whether or not the file is there."""
    path = located(place)
    return path / CHECKPOINT_NAME if path.is_dir() else path


def find_shares(path: Path) -> Path | None:
    """The folder of shares that goes with a checkpoint file of this path, if there is one; see sharded.py.

    A kill between two renamings leaves the shares before.
    """
    folder = path.with_suffix(SHARED_SUFFIX)
    found = (place for place in (folder, folder.with_name(folder.name + ".old")) if (place / PLACE_NAME).exists())
    return next(found, None)


def local(tensor: Tensor) -> Tensor:
    """This rank's share of a tensor; all of one that is not shared out."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole_tensor(tensor: Tensor) -> Tensor:
    """A tensor of all ranks' shares."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def count_steps(num_images: int, args: LoopArgs) -> int:
    """Steps of an epoch; the images left over wait for another epoch's order."""
    step = images_a_step(args)
    if num_images < step:
        raise UserError(f"{num_images} images do not fill one step of {step}; lower batch_size or accum_steps")
    return num_images // step


def images_a_step(args: LoopArgs) -> int:
    """On all ranks."""
    return args.batch_size * args.accum_steps * distributed.num_ranks()
