"""The command ``ddim``: thin; its choices come from the registries, its work from the verbs."""
