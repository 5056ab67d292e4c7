"""What a run of main.py learns from: images, a cache of their codes, or such a cache whose images are elsewhere."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from torch.utils.data import Dataset

from data.cache import Manifest, TokenCache, cache_name, describe, is_complete, read_manifest, unreadable_images
from data.code_folders import CodeFolders
from data.images import CroppedImages, check_num_classes, dataset_name, open_dataset
from data.labelled_images import LabelledImages
from data.make_cache import PAPER_SCALE_SIZES, CacheMaker
from models.autoencoder import Autoencoder
from models.class_names import NUM_IMAGENET, human_names, imagenet_keys
from models.config import GeneratorConfig
from runtime import distributed
from runtime.errors import UserError
from runtime.files import located
from training.options import TrainArgs

MAX_DIFFERENT_SHARE = 0.01  # of codes; rounding flips far fewer


@dataclass(frozen=True)
class Source:
    """Images, or what is known of them where a cache or folders of codes serve alone."""

    cache: Path  # folder that a cache of them has or would have
    num_images: int
    class_keys: Sequence[str]
    class_names: Sequence[str] | None
    images: LabelledImages | None
    remarks: Sequence[str]  # what a user may not expect
    codes: CodeFolders | None = None

    def dataset(
        self, config: GeneratorConfig, args: TrainArgs, autoencoder: Autoencoder, sha256: str
    ) -> Dataset | None:
        """What to train on; makes and verifies a cache first if asked, and is None if nothing is to be trained.

        ``sha256`` is the autoencoder's.
        """
        own = config.scale_sizes(autoencoder.config.stride)
        if self.codes is not None:
            self.codes.check(own, autoencoder.config.n_embed, config.num_classes if config.class_cond else None)
            return self.codes
        if not (args.create_cache or args.use_cache or args.verify_cache):
            return CroppedImages(self.images, config.img_size, args.crop)
        if self.images is None:
            manifest = self._manifest_of(config, args, autoencoder, sha256)
        else:
            paper = [side for side in PAPER_SCALE_SIZES if side <= own[-1]]
            more = {"paper": paper, "model": ()}.get(args.cache_scales, args.cache_scales)
            wrong = [side for side in more if not 1 <= side <= own[-1]]
            if wrong:
                raise UserError(
                    f"cache_scales holds {wrong[0]}; sides of scales lie between 1 and the model's {own[-1]}"
                )
            cached = sorted({*own, *more})
            manifest = describe(
                self.images, config.img_size, args.crop, cached, autoencoder.config.n_embed, sha256, _path_of(args)
            )
            self._make(manifest, args, autoencoder)
        if args.verify_cache or not args.use_cache:
            return None
        return TokenCache(self.cache, replace(manifest, scale_sizes=list(own)), own)

    def _manifest_of(self, config: GeneratorConfig, args: TrainArgs, autoencoder: Autoencoder, sha256: str) -> Manifest:
        """What the cache says of the images, and the configuration of all else."""
        return replace(
            read_manifest(self.cache),
            dataset=dataset_name(args.dataset, args.data_path),
            img_size=config.img_size,
            crop=args.crop,
            num_codes=autoencoder.config.n_embed,
            autoencoder_sha256=sha256,
        )

    def _make(self, manifest: Manifest, args: TrainArgs, autoencoder: Autoencoder) -> None:
        """Make, verify and compare the cache, each if asked."""
        maker = CacheMaker(self.images, autoencoder, manifest, args.batch_size, args.num_workers)
        if args.create_cache:
            maker.create(self.cache.parent, args.rebuild_cache)  # compares one that is there
        if args.verify_cache:
            different, compared = maker.verify(self.cache, args.verify_cache, args.seed)
            distributed.say(f"{different} of {compared} codes differ from those in {self.cache}")
            if different > MAX_DIFFERENT_SHARE * compared:
                raise UserError(f"{self.cache} does not hold the codes of these images; move it away and make it again")
        if args.check_images and not args.create_cache:
            maker.check(self.cache)


def open_source(config: GeneratorConfig, args: TrainArgs) -> Source:
    """The images that ``args`` name, or a complete cache of them alone; UserError if there is neither."""
    cache = Path(args.cached_path) / cache_name(dataset_name(args.dataset, args.data_path), config.img_size, args.crop)
    if args.code_paths:
        codes, known = CodeFolders(args.code_paths, config.img_size), config.num_classes == NUM_IMAGENET
        keys = imagenet_keys() if known else [str(label) for label in range(config.num_classes)]
        return Source(cache, len(codes), keys, human_names(keys) if known else None, None, codes.remarks, codes)
    if _serves_alone(cache, args):
        manifest, path = read_manifest(cache), _path_of(args)
        if manifest.data_path != path and Path(path).exists() and not _is_same(manifest.data_path, path):
            raise UserError(
                f"{cache} was made of the images in {manifest.data_path}, not of those in {path}; add --check_images "
                "if they are the same, or set another cached_path"
            )
        origin = manifest.data_path or args.dataset
        remark = (
            f"training from {cache} alone, made of {manifest.num_images} images in {origin}; --check_images compares "
            "it with them"
        )
        remarks = [remark]
        if lacking := len(unreadable_images(cache)):
            remarks.append(f"{lacking} of its images could not be read when it was made; others stand in for them")
        found = Source(cache, manifest.num_images, manifest.class_keys, manifest.class_names, None, remarks)
    else:
        images = open_dataset(args.dataset, args.data_path, config.img_size)
        found = Source(cache, len(images), images.class_keys, images.class_names, images, images.remarks)
    if config.class_cond and config.num_classes and not args.check_data:
        check_num_classes(
            cache.name if found.images is None else found.images.name, found.class_keys, config.num_classes
        )
    return found


def with_num_classes(config: GeneratorConfig, source: Source) -> GeneratorConfig:
    """The configuration with as many classes as the data has, if it leaves that open."""
    if config.num_classes or not config.class_cond:
        return config
    if source.codes is not None:
        raise UserError("folders of codes do not tell how many classes there are; set num_classes")
    return replace(config, num_classes=len(source.class_keys))


def _path_of(args: TrainArgs) -> str:
    """Where the images are, from any working directory."""
    return "" if args.dataset == "digits" else str(located(args.data_path).absolute())


def _is_same(first: str, second: str) -> bool:
    """Whether two paths name one folder, as by a link."""
    with suppress(OSError):  # where one is gone
        return Path(first).samefile(second)
    return False


def _serves_alone(cache: Path, args: TrainArgs) -> bool:
    """Whether the cache does without the images; to make one that is there compares it, unless they are gone."""
    if not args.use_cache or args.check_data or args.check_images or args.verify_cache:
        return False
    if args.rebuild_cache:
        return False
    gone = args.dataset != "digits" and not located(args.data_path).exists()
    return (gone and is_complete(cache)) if args.create_cache else True
