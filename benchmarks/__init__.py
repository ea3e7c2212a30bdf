"""Measurements, each run by hand: what the server is worth, and that its verdicts are the offline ones."""
