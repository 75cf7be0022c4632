"""A session from its start to its end: its state, its clocks, its sleep, and what people have it do."""
