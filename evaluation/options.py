"""Whose features are compared: options of every program that measures."""

from dataclasses import dataclass
from typing import Literal

from evaluation.features.shipped import statistics_file
from runtime.errors import UserError


@dataclass(frozen=True)
class NetworkArgs:
    """Whose features are compared.

    Attributes:
        features: inception, or digits or cifar10: those of a small classifier that ships with the project.
        backend: of inception: tensorflow, which is ADM's own, or torch: the same weights in torch-fidelity's Inception,
            without TensorFlow; its roundings differ, precision and recall in the second digit.
        inception_graph: ADM's classify_image_graph_def.pb; default a copy downloaded once to the user's cache.
        inception_weights: of --backend torch: torch-fidelity's weights-inception-2015-12-05-6726825d.pth; default a
            copy downloaded once to the user's cache.
        no_prec_recall: of inception: leave out precision and recall, the slowest part of large sets.
    """

    features: Literal["inception", "digits", "cifar10"] = "inception"
    backend: Literal["tensorflow", "torch"] = "tensorflow"
    inception_graph: str | None = None
    inception_weights: str | None = None
    no_prec_recall: bool = False

    def __post_init__(self) -> None:
        unused = {"tensorflow": ("inception_weights",), "torch": ("inception_graph",)}[self.backend]
        self.refuse(unused, f"--backend {self.backend}")
        if self.features != "inception":
            self.refuse(("backend", "inception_graph", "no_prec_recall"), f"--features {self.features}")

    def refuse(self, names: tuple[str, ...], beside: str) -> None:
        """An option that would do nothing is a mistake."""
        for name in names:
            if getattr(self, name) != getattr(type(self), name):
                raise UserError(f"--{name} means nothing with {beside}; leave it out")

    @property
    def shipped_reference(self) -> str | None:
        """Statistics of the training images, if the features are a classifier's."""
        return None if self.features == "inception" else str(statistics_file(self.features, "train"))

    @property
    def in_torch(self) -> bool:
        """Whether torch computes, on a device of its own choice."""
        return self.features != "inception" or self.backend == "torch"
