"""Desktops as the hub's pages and its REST API show them, those that run and those that are kept."""
