"""Training: what upstream's run needs to know about the model."""
