"""A server of S3 on a free port of this machine, which it prints; ends with its stdin.

The server is moto's. Its threads look whether an object is there and then write it, in
two steps, which the service itself does in one: so it handles one request at a time.
"""

import os
import sys
import threading

from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from werkzeug.serving import make_server

ONE = threading.Lock()
APPLICATION = DomainDispatcherApplication(create_backend_app)


def one_at_a_time(environment, start):
    with ONE:
        return list(APPLICATION(environment, start))


def end_with_stdin():
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    server = make_server(
        "127.0.0.1", 0, one_at_a_time, threaded=True, request_handler=MotoRequestHandler
    )
    threading.Thread(target=end_with_stdin, daemon=True).start()
    print(server.port, flush=True)
    server.serve_forever()
