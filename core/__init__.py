"""The import path that the quick start names; it only re-exports."""
