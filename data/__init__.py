"""Datasets: the shapes they are drawn from, readers of published layouts and generators of the same."""
