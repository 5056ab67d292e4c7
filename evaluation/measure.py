"""Draw images and measure them: for run_evaluator.sh, sweeps, evaluation while training and the digits' score alike."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from evaluation.compare import report, warn
from evaluation.features.network import Inception, Network, load_on_all_ranks
from evaluation.image_files import open_images
from evaluation.image_sets import ImageSet, check_reference, compute_features, load_image_set
from evaluation.metrics import VERSION, check_order
from evaluation.options import CheckpointArgs
from models.class_names import class_names
from models.config import Drawing
from models.draw import DRAWING_VERSION
from models.family import Generator
from models.loading.checkpoint import find_checkpoint, load_checkpoint
from models.loading.identity import model_sha256
from models.sampling import warnings_of
from runtime import distributed
from runtime.config import plain
from runtime.device import dtype_name, pick_device
from runtime.files import move_aside, read_json, same_settings, write_json
from sampling.bulk import Request, draw_into, place_model, stored_side
from sampling.folder import GRID_NAME, SETTINGS_NAME, SampleFolder, remove_samples, sample_settings
from sampling.labels import balanced_labels
from sampling.memory import pick_batch_size
from sampling.pictures import save_grid

RESULT_NAME, SAMPLES_NAME = "result.json", "samples"
IN_GRID, COLUMNS = 100, 10


class Measurement:
    """Compares samples with a reference; made and used on all ranks, each of which computes a share of the features.

    UserError if the reference has neither images nor statistics of this network.

    Args:
        network: computes the features; None on other ranks than 0 leaves all to that one.
        neighbours: of Inception: measure precision and recall.
        batch_size: images whose features are computed at once.
    """

    def __init__(self, network: Network | None, reference: Path, neighbours: bool = True, batch_size: int = 64) -> None:
        if distributed.is_main():
            check_reference(reference, network.key_suffixes[0], network.class_weights.shape[0])
        self.network, self.path, self.batch_size = network, reference, batch_size
        self.by_neighbours = neighbours and isinstance(network, Inception)
        self.shared = all(distributed.everyones(network is not None, "the network"))

    @cached_property
    def reference(self) -> ImageSet:
        """Computed once, on rank 0."""
        if self.by_neighbours:
            check_order(self.network.squared_distances, self.network.class_weights.shape[0])
        return load_image_set(self.path, self.network, self.batch_size, cache=True, features=self.by_neighbours)

    def measure(self, samples: Path) -> dict[str, Any]:
        """The ``report`` on images in files, on rank 0; nothing on the others."""
        torch.cuda.empty_cache()  # TensorFlow needs some of it
        if distributed.is_main():
            reference = self.reference
            found = load_image_set(samples, self.network, self.batch_size, all_ranks=self.shared)
            return report(reference, found, self.network) | {"batch_size": self.batch_size}
        if self.shared:
            compute_features(open_images(samples), self.network, self.batch_size, all_ranks=True)
        return {}

    def draw_and_measure(self, model: Generator, request: Request, folder: Path, **origin: Any) -> dict[str, Any]:
        """As ``measure``, of the images of a request, after those that a folder lacks are drawn into it on all ranks.

        A folder of other settings is moved aside; ``origin`` is what is recorded of the model among them.
        """
        missing, size = False, stored_side(model, request.drawing, request.resize_to)
        images = SampleFolder(folder, (len(request.labels), size, size, 3), "npz")
        if distributed.is_main():
            options = plain(request.drawing) | {"seed": request.seed, "resize_to": request.resize_to, "format": "npz"}
            options |= origin
            missing = images.prepare(sample_settings(options, model, request.labels, {}))
        if distributed.from_main(missing, "a look at the samples"):
            draw_into(images, model, request)
            if distributed.is_main():
                images.finish(request.labels)
        distributed.barrier("the samples")
        return self.measure(folder)


class CheckpointResults:
    """Results of a checkpoint, one for each drawing, each in a folder of its own; made and used on all ranks.

    ``args`` name the reference. UserError if it, the checkpoint or the network cannot be had.
    """

    def __init__(self, args: CheckpointArgs) -> None:
        device = distributed.set_up(pick_device(args.device))
        self.args, self.checkpoint = args, find_checkpoint(args.checkpoint)
        model = load_checkpoint(self.checkpoint, use_ema=args.use_ema)
        stored_side(model, model.Drawing(), args.resize_to)  # a model that makes no images is an error now
        identity = model_sha256(model) if distributed.is_main() else None  # before weights are converted
        place_model(model, args, device)
        self.model = model
        self.warned: set[str] = set()
        network, reference = load_on_all_ranks(args, device), Path(args.reference)
        self.measurement = Measurement(network, reference, not args.no_prec_recall)
        self.hashes: dict[str, str] = {}  # of all that decides the results but settings
        if distributed.is_main():
            self.hashes = {
                "model_sha256": identity,
                "reference_sha256": open_images(reference).sha256,
                f"{network.kind.lower()}_sha256": network.sha256,
            }
        self.hashes = distributed.from_main(self.hashes, "the hashes of files")

    def settings(self, drawing: Drawing) -> dict[str, Any]:
        """All that decides a result."""
        names = ["num_samples", "seed", "resize_to", "use_ema", "decoder_dtype", "features"]
        names += ["backend", "no_prec_recall"] if self.args.features == "inception" else []
        chosen = {name: getattr(self.args, name) for name in names}
        versions = {"drawing_version": DRAWING_VERSION, "metrics_version": VERSION}
        dtype = dtype_name(self.model.dtype)
        chosen["class_names"] = _sha256_of(class_names(self.model) or [])  # by which the class accuracy counts
        return plain(drawing) | chosen | {"dtype": dtype} | versions | self.hashes

    def find(self, folder: Path, drawing: Drawing) -> dict[str, Any] | None:
        """The result in a folder, if it is there and of the same settings, without its samples if they are to go."""
        result = distributed.from_main(find_result(folder / RESULT_NAME, self.settings(drawing)))
        if result is not None and self.args.delete_samples and distributed.is_main():
            delete_samples(folder / SAMPLES_NAME, result)
        return result

    def make(self, folder: Path, drawing: Drawing, **more: Any) -> dict[str, Any]:
        """Draw and measure into a folder, going on with what is drawn already; ``more`` are entries of the result.

        An earlier result of other settings keeps its metrics under another name.
        """
        args, samples, file = self.args, folder / SAMPLES_NAME, folder / RESULT_NAME
        self._warn(warnings_of(self.model, drawing))
        labels = balanced_labels(self.model, args.num_samples)
        batch_size = args.batch_size or distributed.from_main(pick_batch_size(self.model, drawing))
        request = Request(labels, drawing, args.seed, batch_size, args.compile, resize_to=args.resize_to)
        origin = {"checkpoint": args.checkpoint, "use_ema": args.use_ema, "model_sha256": self.hashes["model_sha256"]}
        result = self.measurement.draw_and_measure(self.model, request, samples, **origin)
        if distributed.is_main():
            self._warn(result["warnings"])
            run = plain(args) | {"batch_size": batch_size} | self.settings(drawing)
            result |= {"run": run, "steps": self.model.num_steps(drawing)} | more
            move_aside(file)
            write_json(file, result)
            if args.delete_samples:
                remove_samples(samples)
            else:
                first = torch.from_numpy(next(open_images(samples).batches(IN_GRID)))
                save_grid(first.permute(0, 3, 1, 2), samples / GRID_NAME, COLUMNS)
        return distributed.from_main(result, "the metrics")

    def _warn(self, texts: Sequence[str]) -> None:
        """Each once, however many drawings it is true of."""
        if distributed.is_main():
            warn(text for text in texts if text not in self.warned)
        self.warned |= set(texts)


def _sha256_of(names: Sequence[str]) -> str:
    return sha256("\n".join(names).encode(errors="surrogateescape")).hexdigest()


def delete_samples(folder: Path, result: Mapping[str, Any]) -> None:
    """Remove the samples that a result is of, if they are there; others stay."""
    found = read_json(folder / SETTINGS_NAME)
    if found is not None and same_settings(found, result["sampling"] or {}, ("images", "duplicates")):
        remove_samples(folder)
    elif folder.is_dir():
        print(f"{folder} holds samples of other settings than this result's, which stay")


def find_result(file: Path, wanted: Mapping[str, Any]) -> dict[str, Any] | None:
    """The result in a file, if its ``run`` was of these settings, whatever others it has; a damaged one is none."""
    result = read_json(file) or {}
    found = result.get("run")
    return result if isinstance(found, dict) and same_settings(found, found | wanted) else None
