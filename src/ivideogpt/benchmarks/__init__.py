"""Measured speed, with the straightforward way of doing the same in the same run."""
