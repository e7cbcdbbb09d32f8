"""The seed's claims as experiments on the engine: loads, runs, claims, and running them into a folder."""
