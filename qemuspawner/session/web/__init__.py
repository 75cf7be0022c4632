"""What browsers and programs ask a session for by HTTP."""
