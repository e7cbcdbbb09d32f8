"""A discrete-event simulator: simpy runs the scheduler's step plans in simulated time."""
