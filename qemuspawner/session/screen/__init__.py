"""The desktop on its way to browsers and back: RFB, websockets, the relay, sound, keys and pictures."""
