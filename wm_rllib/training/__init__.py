"""The driver's side of an iteration: phases, stages, publishing, placement, evaluations, the report."""
