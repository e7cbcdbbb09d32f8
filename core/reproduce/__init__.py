"""Published results of the literature, against what the simulator gives: one module an experiment."""
