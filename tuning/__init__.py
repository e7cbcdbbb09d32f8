"""Which settings serve a workload best: searched in the simulator, confirmed on what was held out, run for real."""
