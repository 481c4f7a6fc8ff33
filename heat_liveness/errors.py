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

"""Every error a caller can catch; each message is a sentence that says what to do."""


class LivenessError(Exception):
    """The root of this package's errors."""


class ConfigError(LivenessError):
    """An option, or a set of options, cannot be used; the message names the value that would do."""


class DatabaseError(LivenessError):
    """The database refused or could not be reached; the message never holds a password."""


class UnclearOutcome(DatabaseError):
    """A statement was sent and its fate is unknown: it may have happened, or may happen yet."""


class Contended(DatabaseError):
    """Another transaction was first, and this one was rolled back whole."""


class DataRefused(DatabaseError):
    """The database refused a value, as it will refuse it again; nothing was written."""


class SchemaError(LivenessError):
    """Tables are missing, the ``liveness_`` tables or the service's own, or of another version."""


class NotFound(LivenessError):
    """No such engine, lock or takeover."""


class Refused(LivenessError):
    """A command would do harm in the present state, and did nothing."""


class LockHeld(LivenessError):
    """Another engine, or another task of this one, holds the lock."""


class LockLost(LivenessError):
    """A write under a lock changed no row: the lock belongs to somebody else by now."""


class EngineHeld(LivenessError):
    """The engine could not beat for ``fence_time`` and starts nothing until a beat succeeds."""


class EngineDead(LivenessError):
    """The engine was declared dead; nothing may start under its name any more."""


class TemplateError(LivenessError):
    """A template cannot be read, or its resources cannot be put in order."""
