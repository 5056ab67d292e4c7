"""The choice of what computes features."""

from pathlib import Path

import torch

from evaluation.features.classifier import Classifier
from evaluation.features.inception_tf import TensorFlowInception, default_graph
from evaluation.features.network import Network
from evaluation.features.shipped import weights_file
from evaluation.options import NetworkArgs


def network_file(args: NetworkArgs) -> Path:
    """The file of weights that ``args`` name, fetched if need be; nothing is loaded."""
    if args.features != "inception":
        return weights_file(args.features)
    if args.backend == "torch":
        from engine.metrics.inception_torch import default_weights

        return default_weights() if args.inception_weights is None else Path(args.inception_weights)
    return default_graph() if args.inception_graph is None else Path(args.inception_graph)


def load_network(args: NetworkArgs, device: torch.device) -> Network:
    """What ``args`` name; the libraries of others are not imported."""
    if args.features != "inception":
        return Classifier(args.features, device)
    if args.backend == "torch":
        from engine.metrics.inception_torch import TorchInception

        return TorchInception(None if args.inception_weights is None else Path(args.inception_weights), device)
    return TensorFlowInception(None if args.inception_graph is None else Path(args.inception_graph))
