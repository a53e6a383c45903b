"""Datasets: shapes, readers of published layouts, and generators of the same layouts."""
