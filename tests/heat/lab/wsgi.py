# Licensed under the Apache License, Version 2.0 (the "License"); you may
# not use this file except in compliance with the License. You may obtain
# a copy of the License at
#
#      http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS, WITHOUT
# WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the
# License for the specific language governing permissions and limitations
# under the License.

"""Serves a WSGI application of OpenStack on a loopback port, with the standard library.

Called with the port, the module that has the ``application``, and what that reads from sys.argv.
"""

import importlib
import socketserver
import sys
import threading
from collections.abc import Callable, Iterable
from wsgiref import simple_server

SERIAL = 'keystone.wsgi.api'
"""What is asked one question at a time.

In Keystone 30, of two requests at one time one can be taken to have the scope of the other: 403,
"requires a scope of [project]", where another thread just serves the token of a domain.
"""

Application = Callable[..., Iterable[bytes]]


class Server(socketserver.ThreadingMixIn, simple_server.WSGIServer):
    """One thread for each request: Heat asks Keystone while Keystone's client waits for Heat."""

    daemon_threads = True
    request_queue_size = 128


def serial(application: Application) -> Application:
    """Let an application serve one request at a time."""
    turn = threading.Lock()

    def serve(*request: object) -> Iterable[bytes]:
        with turn:
            return list(application(*request))

    return serve


def main() -> None:
    port, module = int(sys.argv[1]), sys.argv[2]
    sys.argv[1:] = sys.argv[3:]
    application = importlib.import_module(module).application
    if module == SERIAL:
        application = serial(application)
    with simple_server.make_server('127.0.0.1', port, application, Server) as server:
        server.serve_forever()


if __name__ == '__main__':
    main()
