"""Users' desktops that are to become machines: wished for, looked at and answered."""
