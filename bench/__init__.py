"""Measurements of the model side; see README.md. Not installed: ``python -m bench.generate``."""
