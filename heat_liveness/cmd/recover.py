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

"""``recover``: recovery in one go, by a driver that knows the service that is recovered."""

import signal
import sys
from typing import Any

from heat_liveness import conf, errors

GROUP = 'heat_liveness.recover'


def once(config: Any, settings: conf.Settings, options: Any) -> str:
    """Recover once, or say what would be done.

    :raises ConfigError: the driver is not installed, or what it recovers is not
    :raises KeyboardInterrupt: it was told to end, by SIGINT or SIGTERM, and has left
    """
    from stevedore import driver, exception

    try:
        recover: Any = driver.DriverManager(GROUP, options.driver).driver
    except exception.NoMatches as error:
        raise errors.ConfigError(
            f'There is no driver {options.driver!r} in {GROUP}: install the package that has '
            f'it.') from error
    # A command that ended without leaving would keep what it has claimed until it is found dead.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return str(recover(config, settings, dry_run=options.dry_run, only=options.stack, say=_say))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
