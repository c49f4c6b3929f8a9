"""Environments to record from and to act in."""
