"""The maths: paths, grids, predictions, guidance and the one loop. Needs torch and nothing else."""
