"""The choice of what computes features."""

import torch

from evaluation.features.classifier import Classifier
from evaluation.features.network import Network
from evaluation.options import NetworkArgs
from runtime import distributed


def load_network(args: NetworkArgs, device: torch.device) -> Network:
    """What ``args`` name; the libraries of others are not imported."""
    if args.features != "inception":
        return Classifier(args.features, device)
    if args.backend == "torch":
        from evaluation.features.inception_torch import TorchInception

        return TorchInception(args.inception_weights, device)
    from evaluation.features.inception_tf import TensorFlowInception

    return TensorFlowInception(args.inception_graph)


def load_on_all_ranks(args: NetworkArgs, device: torch.device) -> Network | None:
    """As ``load_network``: on rank 0, and where torch computes on the others too, once nothing is left to download.

    TensorFlow takes all GPUs that it finds, so one process has it.
    """
    network = load_network(args, device) if distributed.is_main() else None
    distributed.barrier()
    return load_network(args, device) if network is None and args.in_torch else network
