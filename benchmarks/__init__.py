"""Measurements of what this project costs; `run` runs them."""
