"""Networks that measure: each gives features, distances or flow; their weights are in `kinema.eval.weights`.

Each is a file of its own with a function `load_...(path=None)`, imported when a metric needs it.
"""
