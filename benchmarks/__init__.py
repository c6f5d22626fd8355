"""Measurements of fused_bptt against what else trains a vanilla RNN; see README.md here."""
