"""The maths of diffusion: paths, grids, predictions, guidance and the solver loop. Depends on torch alone."""
