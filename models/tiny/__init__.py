"""The embedded checkpoints: small genuine models of each family, and the script that trains them on a CPU."""
