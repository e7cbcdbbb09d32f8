"""A real engine: torch and transformers run the scheduler's step plans."""
