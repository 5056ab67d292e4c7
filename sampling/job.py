"""What main_sample.py does once its arguments are understood."""

import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.config import Drawing
from models.family import Generator, Samples
from models.loading.checkpoint import load_checkpoint, random_model
from models.loading.identity import model_sha256
from models.sampling import checked_drawing, warnings_of
from runtime import distributed
from runtime.config import as_flags
from runtime.device import describe_size, dtype_name, pick_device
from runtime.errors import UserError
from runtime.files import free_name, whole
from runtime.lock import lock_folder
from sampling import folder as sample_folder
from sampling.bulk import Request, draw_into, draw_many, place_model, sampler_of, stored_side
from sampling.editing import Edit, make_edit
from sampling.folder import MAPS, SampleFolder, sample_settings
from sampling.labels import balanced_labels, class_captions, listed_names, parse_labels, read_labels, shown_labels
from sampling.maps import MAX_ANIMATED, save_animation, save_entropy_by_step, save_maps
from sampling.memory import pick_batch_size
from sampling.options import SampleArgs
from sampling.pictures import save_labelled_grid

EDITED = ("the image", "to be drawn anew")  # what ``Edit.pictures`` shows
NUM_SHOWN = 16
MAX_IN_GRID = 100


def draw_samples(args: SampleArgs, settings: dict[str, Any]) -> None:
    """Draw what ``args`` ask for into a folder, on all ranks; ``settings`` of the drawing are those that were given."""
    device = distributed.set_up(pick_device(args.device))
    model = _load_model(args)
    if args.list_classes:
        distributed.say("\n".join(f"{label}: {name}" for label, name in enumerate(listed_names(model))))
        return
    drawing = checked_drawing(model, settings, keeps=args.edit is not None)
    _say_recommended(model, settings)
    side = stored_side(model, drawing, args.resize_to)
    labels = choose_labels(model, args)
    sha256 = model_sha256(model) if distributed.is_main() else ""
    for warning in warnings_of(model, drawing):
        distributed.say(f"warning: {warning}")
    place_model(model, args, device)
    edit = None if args.edit is None else make_edit(args.edit, args.mask, model, args.blend)
    constraint = edit and edit.constraint
    batch_size = args.batch_size or distributed.from_main(pick_batch_size(model, drawing))
    request = Request(labels, drawing, args.seed, batch_size, args.compile, constraint, args.resize_to)
    maps = MAPS if args.maps or args.animation else ("codes",) if args.save_codes else ()
    with _output_folder(args) as path:
        folder = SampleFolder(path, (len(labels), side, side, 3), args.format, maps)
        if _prepare(folder, model, request, args, sha256):
            request = replace(request, sampler=sampler_of(model, request))
            distributed.say(
                f"{describe_size(model)}; {len(labels)} images of {side} px in {request.num_steps(model)} steps, "
                f"{request.sampler.batch} at once; {dtype_name(model.dtype)} on {device}"
            )
            if args.compile:
                start = time.perf_counter()
                next(draw_many(model, request, [0]))
                distributed.say(f"compiled in {time.perf_counter() - start:.0f} s")
            start = time.perf_counter()
            count = draw_into(folder, model, request, edit and edit.paste_back)
            seconds = time.perf_counter() - start
            if distributed.is_main():
                _finish(folder, model, drawing, labels, args, edit)
                rate = f"{seconds / count:.2f} s an image; " if count else ""
                print(f"{rate}{path / (sample_folder.NPZ_NAME if args.format == 'npz' else sample_folder.GRID_NAME)}")
    distributed.tear_down()


def _say_recommended(model: Generator, given: Mapping[str, Any]) -> None:
    """Name the settings that the checkpoint decides, if any."""
    taken = {name: value for name, value in model.recommended.items() if name not in given}
    if taken:
        distributed.say(f"as the checkpoint recommends: {shlex.join(as_flags(taken))}")


@contextmanager
def _output_folder(args: SampleArgs) -> Iterator[Path]:
    """The folder to write to, locked; one that is new and still empty is removed again after an error."""
    new, path = True, Path()
    if distributed.is_main():
        new = args.output_dir is None or not Path(args.output_dir).exists()
        path = folder_of_now(Path("samples")) if args.output_dir is None else Path(args.output_dir)
    path = distributed.from_main(path)
    try:
        with lock_folder(path):
            yield path
    except BaseException:
        if new and distributed.is_main():
            with suppress(OSError):
                path.rmdir()
        raise


def folder_of_now(parent: Path) -> Path:
    """A new folder named by the time; two jobs that begin in one second get two."""
    now = path = parent / datetime.now().strftime("%Y%m%d-%H%M%S")
    parent.mkdir(parents=True, exist_ok=True)
    while True:
        with suppress(FileExistsError):
            path.mkdir()
            return path
        path = free_name(now)


def _load_model(args: SampleArgs) -> Generator:
    if args.checkpoint is not None:
        return load_checkpoint(args.checkpoint, use_ema=args.use_ema)
    torch.manual_seed(args.seed)
    model, has_autoencoder = random_model(Path(args.config))
    autoencoder = "" if has_autoencoder else ", with a random autoencoder"
    distributed.say(f"random weights of {args.config}{autoencoder}: expect noise")
    return model


def choose_labels(model: Generator, args: SampleArgs) -> list[int]:
    """The class of each image that is asked for."""
    if not model.config.class_cond and (args.labels is not None or args.label_file is not None):
        raise UserError("this model was trained without classes; leave out --labels and --label_file")
    count = args.num_samples
    if args.labels is None and args.label_file is None and count is not None and count >= model.config.num_classes:
        return balanced_labels(model, count)
    if args.label_file is not None:
        labels = read_labels(args.label_file, model)
    else:
        labels = shown_labels(model, NUM_SHOWN) if args.labels is None else parse_labels(args.labels, model)
    return labels if count is None else [labels[i % len(labels)] for i in range(count)]


def _prepare(folder: SampleFolder, model: Generator, request: Request, args: SampleArgs, sha256: str) -> bool:
    """Make the folder ready to write to; whether anything is to be drawn, the same on every rank."""
    missing = False
    if distributed.is_main():
        options = asdict(args) | asdict(request.drawing) | {"model_sha256": sha256, "batch_size": request.batch_size}
        settings = sample_settings(options, model, request.labels, {"edit": args.edit, "mask": args.mask})
        made = {sample_folder.GRID_NAME: True, sample_folder.CODES_NAME: args.save_codes}
        made |= {sample_folder.MAPS_NAME: args.maps, sample_folder.ENTROPY_NAME: args.maps}
        made |= {sample_folder.ANIMATION_NAME: args.animation}
        missing = folder.prepare(settings, [name for name, wanted in made.items() if wanted])
        if not missing:
            print(f"{folder.path} holds these samples already; name another --output_dir, or ask for other images")
    return distributed.from_main(missing)


def save_overview(images: Tensor, labels: Sequence[int], model: Generator, edit: Edit | None, folder: Path) -> None:
    """Write the first images (n, 3, H, W) uint8 in one picture; that of an edit begins with what was edited."""
    captions = class_captions(model, labels[: len(images)])
    if edit is not None:
        images, captions = torch.cat([edit.pictures(), images]), [*EDITED, *captions]
    save_labelled_grid(images, captions, folder / sample_folder.GRID_NAME)


def _finish(
    folder: SampleFolder,
    model: Generator,
    drawing: Drawing,
    labels: Sequence[int],
    args: SampleArgs,
    edit: Edit | None,
) -> None:
    """Write what is made of all images, and report doubles."""
    save_overview(folder.first_images(MAX_IN_GRID), labels, model, edit, folder.path)
    maps = {name: folder.read_map(name, drawing.sampled_sizes(model.scale_sizes)) for name in folder.maps}
    if args.save_codes:
        codes = {f"codes_{scale.shape[-1]}": scale.numpy() for scale in maps["codes"]}
        with whole(folder.path / sample_folder.CODES_NAME) as path:
            np.savez(path, labels=np.array(labels), **codes)
    if args.maps or args.animation:
        # Floats that every family's 8-bit rule takes back to these bytes.
        samples = Samples((folder.first_images(MAX_ANIMATED) + 0.25) / 127.5 - 1, **maps)
        if args.maps:
            save_maps(samples, model, folder.path)
            save_entropy_by_step(samples, folder.path / sample_folder.ENTROPY_NAME)
        if args.animation:
            finish = {} if edit is None else {"finish": edit.paste_back}
            save_animation(samples, model, folder.path / sample_folder.ANIMATION_NAME, **finish)
    duplicates = folder.finish(labels)
    if duplicates and args.edit is None:
        first = ", ".join(map(str, duplicates[0][:5]))
        distributed.say(f"warning: {sum(map(len, duplicates))} images have a double, as {first} (all in samples.json)")
