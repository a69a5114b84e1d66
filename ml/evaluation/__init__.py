"""Evaluation: metrics, the comparison of two versions, the gate, plots."""
