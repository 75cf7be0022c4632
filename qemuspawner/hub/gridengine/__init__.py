"""Grid Engine as an engine: its commands, what it says of jobs, and its spawner. Tried with SGE 8.1.9."""
