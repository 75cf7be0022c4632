"""Whether one more desktop may start: quotas, what hosts have, what was promised."""
