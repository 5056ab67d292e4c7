"""Training: the loop, its state on disk, tasks, previews."""
