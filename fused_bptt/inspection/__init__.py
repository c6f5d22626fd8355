"""BPTT made visible: every factor of a backward pass, and what is wrong with one done by hand."""
