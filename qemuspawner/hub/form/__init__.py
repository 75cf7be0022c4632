"""The options form and every option of a start: checked, kept under a name, marked with a star, accepted."""
