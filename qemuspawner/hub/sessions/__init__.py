"""Sessions as the hub starts, knows and follows them."""
