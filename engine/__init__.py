"""What surrounds a model: configuration, training, checkpoints, output."""
