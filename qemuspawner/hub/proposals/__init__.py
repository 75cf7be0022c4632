"""Proposals (experiments): where they come from, whose they are, and desktops that start on one."""
