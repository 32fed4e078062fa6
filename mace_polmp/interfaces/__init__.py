"""Other programs that run MultipoleMACE models."""
