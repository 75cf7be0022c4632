"""A program of its own: makes TCP sockets in the network namespace that it runs in, and hands them over.

`make_sockets.py DESCRIPTOR COUNT`: they are sent through the unix socket DESCRIPTOR. It connects none of
them, reads nothing and ends at once.
"""

import socket
import sys

if __name__ == "__main__":
    channel = socket.socket(fileno=int(sys.argv[1]))
    made = [socket.socket(socket.AF_INET, socket.SOCK_STREAM) for _ in range(int(sys.argv[2]))]
    socket.send_fds(channel, [b"."], [one.fileno() for one in made])
