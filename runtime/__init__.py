"""What every program needs and no model."""
