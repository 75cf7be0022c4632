"""What a session does inside the guest, and what the guest is given: its user, folders, scripts, gifts."""
