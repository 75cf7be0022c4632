"""Websocket frames as a browser sends them, and the headers of ours. Pure: bytes in, bytes out.

Written for pieces of a few bytes, as keys and the pointer are: a general parser takes ten times as long over
each. The tests hold it against wsproto's, byte by byte.

Source: RFC 6455, sections 5 and 7.
"""

import struct

from tornado.util import _websocket_mask as _apply_mask  # in C, or in Python where Tornado has no compiler

MAX_MESSAGE_BYTES = 256 * 1024
MAX_HEADER_BYTES = 10  # of a frame from a server, which has no mask

NORMAL, GOING_AWAY, PROTOCOL_ERROR, UNSUPPORTED, INVALID, TOO_BIG = 1000, 1001, 1002, 1003, 1007, 1009

_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0, 1, 2, 8, 9, 10
_FIN, _RESERVED, _MASKED = 0x80, 0x70, 0x80
_MAX_CONTROL_BYTES = 125
_WHOLE_BINARY = _FIN | _BINARY
_SMALL = range(_MASKED, _MASKED + 126)  # second bytes of a masked frame whose length they hold


class WebSocketError(Exception):
    """The peer broke the rules of websockets, or ours."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class FrameReader:
    """A browser's stream after the handshake, of which the payload of binary messages comes out.

    A message's borders mean nothing to us; only its length is checked. What control frames ask for is left in
    attributes. Holds at most a frame's header, or one control frame (131 bytes); payload passes as it comes.
    """

    def __init__(self) -> None:
        self.ping: bytes | None = None  # the newest ping, until somebody answers and clears it
        self.closed = False  # a close frame came: nothing after it is read
        self._held = b""  # the beginning of a frame
        self._left = 0  # bytes of a data frame's payload still to come
        self._mask = b""  # turned to where in the payload we are
        self._in_message = False  # between the fragments of one
        self._message_bytes = 0

    def feed(self, data: bytes | memoryview) -> bytes:
        """Take the next bytes of the stream, cut anywhere; returns their payload.

        Of long pieces a memoryview is quicker, as slices of it copy nothing; of short ones, bytes.

        Raises:
            WebSocketError: The stream is not what it has to be, and of no use then.
        """
        if self._held:
            data = self._held + bytes(data)
            self._held = b""
        pieces: list[bytes] = []
        at, end = 0, len(data)
        while at < end and not self.closed:
            if self._left:
                piece = bytes(data[at : at + self._left])
                pieces.append(self._unmask_part(piece))
                at += len(piece)
                continue
            if (
                end - at >= 6
                and data[at] == _WHOLE_BINARY
                and data[at + 1] in _SMALL
                and not self._in_message
            ):
                start = at + 6
                stop = start + data[at + 1] - _MASKED
                if stop <= end:
                    pieces.append(_apply_mask(bytes(data[at + 2 : start]), bytes(data[start:stop])))
                    at = stop
                    continue
            taken = self._begin_frame(data, at)
            if not taken:
                self._held = bytes(data[at:])
                break
            at += taken
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _unmask_part(self, piece: bytes) -> bytes:
        payload = _apply_mask(self._mask, piece)
        self._left -= len(piece)
        turn = len(piece) % 4
        self._mask = self._mask[turn:] + self._mask[:turn]
        return payload

    def _begin_frame(self, data: bytes | memoryview, at: int) -> int:
        """Read a data frame's header or all of a control frame; its length, 0 while it is not whole."""
        if len(data) - at < 2:
            return 0
        first, second = data[at], data[at + 1]
        opcode = first & 0x0F
        if first & _RESERVED:
            raise WebSocketError(PROTOCOL_ERROR, "A frame has reserved bits set.")
        if not second & _MASKED:
            raise WebSocketError(PROTOCOL_ERROR, "A frame from a browser has no mask.")
        size = second & 0x7F
        start = at + 2
        if size > _MAX_CONTROL_BYTES:
            if opcode >= _CLOSE:
                raise WebSocketError(
                    PROTOCOL_ERROR, f"A control frame is longer than {_MAX_CONTROL_BYTES} bytes."
                )
            digits, least = (2, 126) if size == 126 else (8, 65536)
            start += digits
            if len(data) < start:
                return 0
            size = int.from_bytes(data[at + 2 : start], "big")
            if size < least:
                raise WebSocketError(
                    PROTOCOL_ERROR, f"A frame's length of {size} is written in {digits} bytes."
                )
        start += 4
        if len(data) < start:
            return 0
        mask = bytes(data[start - 4 : start])
        if opcode >= _CLOSE:
            if len(data) < start + size:
                return 0
            self._take_control(
                opcode, _apply_mask(mask, bytes(data[start : start + size])), is_final=bool(first & _FIN)
            )
            return start + size - at
        self._take_header(opcode, size, is_final=bool(first & _FIN))
        self._mask, self._left = mask, size
        return start - at

    def _take_header(self, opcode: int, size: int, *, is_final: bool) -> None:
        if opcode == _TEXT:
            raise WebSocketError(UNSUPPORTED, "Only binary messages are read.")
        if opcode not in (_CONTINUATION, _BINARY):
            raise WebSocketError(PROTOCOL_ERROR, f"Frame type {opcode} is unknown.")
        if (opcode == _CONTINUATION) != self._in_message:
            raise WebSocketError(PROTOCOL_ERROR, "A message's fragments are out of order.")
        self._message_bytes += size
        if self._message_bytes > MAX_MESSAGE_BYTES:
            raise WebSocketError(TOO_BIG, f"A message is longer than {MAX_MESSAGE_BYTES} bytes.")
        self._in_message = not is_final
        if is_final:
            self._message_bytes = 0

    def _take_control(self, opcode: int, payload: bytes, *, is_final: bool) -> None:
        if not is_final:
            raise WebSocketError(PROTOCOL_ERROR, "A control frame is fragmented.")
        if opcode == _CLOSE:
            _check_farewell(payload)
            self.closed = True
        elif opcode == _PING:
            self.ping = payload
        elif opcode != _PONG:
            raise WebSocketError(PROTOCOL_ERROR, f"Frame type {opcode} is unknown.")


def _check_farewell(payload: bytes) -> None:
    if not payload:
        return
    code = int.from_bytes(payload[:2], "big")
    registered = 1000 <= code <= 1013 and code not in (1004, 1005, 1006)
    if len(payload) == 1 or not (registered or 3000 <= code <= 4999):
        raise WebSocketError(PROTOCOL_ERROR, "A close frame's code is none.")
    try:
        payload[2:].decode()
    except UnicodeDecodeError:
        raise WebSocketError(INVALID, "A close frame's reason is not UTF-8.") from None


def header(size: int) -> bytes:
    """What stands before a binary message of `size` bytes."""
    if size < 126:
        return struct.pack(">BB", _WHOLE_BINARY, size)
    if size < 65536:
        return struct.pack(">BBH", _WHOLE_BINARY, 126, size)
    return struct.pack(">BBQ", _WHOLE_BINARY, 127, size)


def ping() -> bytes:
    return bytes([_FIN | _PING, 0])


def pong(payload: bytes) -> bytes:
    return bytes([_FIN | _PONG, len(payload)]) + payload


def cut_reason(reason: str) -> str:
    """What of a close frame's reason fits into it, in whole words."""
    if len(reason.encode()) <= _MAX_CONTROL_BYTES - 2:
        return reason
    ellipsis = "…"
    fitting = reason.encode()[: _MAX_CONTROL_BYTES - 2 - len(ellipsis.encode())].decode(errors="ignore")
    return (fitting.rpartition(" ")[0] or fitting) + ellipsis


def farewell(code: int, reason: str) -> bytes:
    """A close frame; a reason too long for it is cut."""
    said = cut_reason(reason).encode()
    return bytes([_FIN | _CLOSE, 2 + len(said)]) + struct.pack(">H", code) + said
