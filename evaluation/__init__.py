"""Metrics of images: FID, sFID, Inception Score, precision and recall, as the ADM evaluator defines them."""
