"""Checkpoint files <-> models; nothing else in models/ touches files."""
