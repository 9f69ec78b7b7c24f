"""The benchmarks, a module each. None imports torch before it runs."""
