"""The catalogue: what can be started, and how its images are made."""
