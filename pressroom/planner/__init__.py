"""The planner: memory, time and cost of a training run, before anything is queued."""
