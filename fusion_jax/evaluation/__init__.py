"""How good a model is: losses, readouts, metrics, intervals, search objectives."""
