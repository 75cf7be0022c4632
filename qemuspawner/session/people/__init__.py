"""Who is at the desktop, what each may do, and what the hub is told of it."""
