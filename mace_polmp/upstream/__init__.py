"""The wiring to mace-torch: the only place that touches its private behaviour."""
