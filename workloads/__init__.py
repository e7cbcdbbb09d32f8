"""Requests: presets, traces, synthetic arrivals and lengths."""
