"""Embedded checkpoints: a small model of each family, and the script that trains them on a CPU."""
