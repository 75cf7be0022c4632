"""The sizes that a desktop can have from its start to its end, instead of its owner's window's."""

RESOLUTIONS = ("1024x768", "1280x720", "1280x800", "1440x900", "1600x900", "1920x1080", "2560x1440")


def parse_resolution(text: str) -> tuple[int, int]:
    """ "1280x800" -> (1280, 800), for one of `RESOLUTIONS`."""
    width, _, height = text.partition("x")
    return int(width), int(height)
