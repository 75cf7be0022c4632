"""A stand-in for qemuspawner-session that is ready at once: for tests that start hundreds.

QEMUSPAWNER_STANDIN_STATUS is JSON of more that its status says.
"""

import http.server
import json
import os
import socket

SPEC = json.loads(os.environ["QEMUSPAWNER_SESSION"])
STATUS = {"session_id": SPEC["session_id"], "state": "running", "way": "restored", "version": 1}
STATUS |= json.loads(os.environ.get("QEMUSPAWNER_STANDIN_STATUS", "{}"))


class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = json.dumps(STATUS).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args: object) -> None:
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer, bind_and_activate=False)
server.socket = socket.socket(fileno=int(os.environ["QEMUSPAWNER_LISTEN_FD"]))
server.socket.setblocking(True)
server.serve_forever()
