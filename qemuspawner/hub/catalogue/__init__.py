"""Machines and images, administered on the hub."""
