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

"""Heat's own code in a process that is no heat-engine: what it needs before it is imported."""

from typing import Any

from oslo_config import cfg
from oslo_service import backend


def prepare(configuration: Any) -> None:
    """Let Heat read the files that our configuration was read from, and load its plug-ins.

    :raises ImportError: Heat is not installed
    :raises oslo_config.cfg.Error: its configuration cannot be used
    """
    # Importing Heat's engine would choose eventlet.
    backend.init_backend(backend.BackendType.THREADING)

    from heat.common import config, messaging
    from heat.engine import resources

    del config  # imported, it registers Heat's options
    cfg.CONF([], project='heat', prog='heat-engine',
             default_config_files=list(configuration.config_file or ()),
             default_config_dirs=list(configuration.config_dir or ()))
    messaging.setup()
    resources.initialise()
