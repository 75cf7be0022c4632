"""Torque as an engine: its commands, what it says of jobs, and its spawner.

Never tried with a real one: its answers are those of its manual.
"""
