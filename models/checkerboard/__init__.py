"""The progressive checkerboard: blocks of a fixed order, scale by scale."""
