"""Sessions as jobs of a Slurm cluster: its words understood, its queue watched, its jobs made.

Tried with Slurm 22.05; its commands are asked for text in columns of our choice, which no version has moved.
"""
