"""Measurements against what else trains a vanilla RNN, and reports drawn from them.

`fused-bptt bench` measures and writes a file of results; `fused-bptt report` reads such files and
nothing else. What is measured, and how, is in the repository's benchmarks/README.md.
"""
