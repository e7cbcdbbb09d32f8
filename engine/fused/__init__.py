"""A transformers model as a few kernels: its weights merged, its layers one loop."""
