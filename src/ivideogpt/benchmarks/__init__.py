"""Measured speed, with a reference that does the same in the same run."""
