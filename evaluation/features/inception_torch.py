"""The same Inception in PyTorch, by torch-fidelity: ADM's weights, TensorFlow's way to resize.

Letters as in network.py: D = 2048 features, S = 17 * 17 * 7 spatial ones.
"""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
from torch_fidelity.version import __version__

from evaluation.features.network import SPATIAL_CHANNELS, Inception, inception_file, too_little_memory
from runtime.device import exact_float32
from runtime.errors import UserError


class TorchInception(Inception):
    """torch-fidelity's, ready to compute; by default with weights of the user's cache. UserError if they are others.

    ``pinned`` is the SHA-256 that the user wants their file to have.
    """

    def __init__(self, weights_path: str | Path | None, device: torch.device, pinned: str | None = None) -> None:
        path, self.sha256 = inception_file(weights_path, URL_INCEPTION_V3, "--inception_weights", pinned)
        try:
            torch.load(path, weights_only=True)  # torch-fidelity would run whatever code a pickle holds
            network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(path))
        except (RuntimeError, pickle.UnpicklingError, EOFError, TypeError, AttributeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"{path} does not hold the weights of torch-fidelity's Inception ({reason})") from error
        self._network, self._device = network.to(device), device
        # ADM's mixed_6/conv, as TensorFlow counts the blocks: after normalization and ReLU.
        network.Mixed_6d.branch1x1.register_forward_hook(self._keep_spatial)
        self.versions = {"torch-fidelity": __version__}
        self.class_weights = network.fc.weight.T.float().cpu().numpy()

    def _keep_spatial(self, _: nn.Module, __: Any, output: Tensor) -> None:
        self._spatial = output[:, :SPATIAL_CHANNELS]  # (B, 7, 17, 17)

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        try:
            with exact_float32():
                (pooled,) = self._network(torch.from_numpy(images).to(self._device).permute(0, 3, 1, 2))
        except torch.OutOfMemoryError as error:
            raise too_little_memory(len(images)) from error
        spatial = self._spatial.permute(0, 2, 3, 1).flatten(1)  # in TensorFlow's order
        return pooled.cpu().numpy(), spatial.float().cpu().numpy()

    @torch.inference_mode()
    def squared_distances(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """As in the base: rounded to float16 where ADM rounds, unless that overflows.

        Sums are in float32 before they are rounded, as GPUs do; TensorFlow on a CPU rounds in between too.
        """
        with exact_float32():
            return self._squared_distances(rows, columns)

    def _squared_distances(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        singles = [torch.from_numpy(features).to(self._device) for features in (rows, columns)]
        halves = [features.half() for features in singles]
        norms = [half.square().sum(dim=1, dtype=torch.float32).half() for half in halves]
        products = (halves[0].float() @ halves[1].float().T).half()
        distances = norms[0][:, None] - 2 * products + norms[1]
        if not distances.isfinite().all():
            norms = [single.square().sum(dim=1) for single in singles]
            distances = norms[0][:, None] - 2 * (singles[0] @ singles[1].T) + norms[1]
        return distances.clamp_(min=0).float().cpu().numpy()
