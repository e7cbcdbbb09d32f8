"""Executors: what runs a step plan on a device. ``padded`` is the plain way, ``paged`` computes no padding."""
