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
from wsgiref import simple_server


class Server(socketserver.ThreadingMixIn, simple_server.WSGIServer):
    """One thread for each request: Heat asks Keystone while Keystone's client waits for Heat."""

    daemon_threads = True
    request_queue_size = 128


def main() -> None:
    port, module = int(sys.argv[1]), sys.argv[2]
    sys.argv[1:] = sys.argv[3:]
    application = importlib.import_module(module).application
    with simple_server.make_server('127.0.0.1', port, application, Server) as server:
        server.serve_forever()


if __name__ == '__main__':
    main()
