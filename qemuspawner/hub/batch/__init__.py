"""Sessions as jobs, whichever engine runs them: submitted, watched and ended.

An engine is a module of its own, as `hub/slurm`: its commands, and what it says of jobs.
"""
