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

"""Every option, in one place, and the rules that hold between them.

The protocol is safe only while its times keep a certain order, so a set of options is
checked as a whole.  The names of the inequalities:

========  =====================================================  =================
symbol    what                                                   where it is from
========  =====================================================  =================
r, j      beat period, and how far jitter stretches it (1.1)     report_interval
p         pause before a failed beat is tried again              beat_retry
tc, tr    bounds of one connect, of one read or write            connect_timeout, read_timeout
S         longest stall of a database that is well               database_stall_time
g         longest stall of the interpreter                       stall_time
F, k      when an engine holds; how much later a timer of the    fence_time; the longer
          kernel ends a process that cannot even hold            of 1 s and stall_time
c         age of a beat that makes a row a candidate             1.5 r, at least j·r + 1
W         how long an observer watches a candidate: D - c
rho       how much two clocks may differ in rate (0.1 %)
D         death to declaration                                   service_down_time
========  =====================================================  =================

* safety: ``W (1 - rho) > (F + k)(1 + rho) + 1``: whoever is declared dead has held since;
* the fence is not in vain: ``F >= j·r + S + p + tc + 2·tr + g``: no engine holds because
  of a stall that a well database or a busy interpreter may have;
* an outage is no death: ``D >= j·r + p + tc + 2·tr + g + max(j·r + tr + g, tc + 2·tr + g)``: the
  last is the longest outage that an observer cannot notice, between two of its own beats or
  within one read; the rest is how long those who live then need to get through;
* a window is made of several looks: ``scan_interval <= D / 4``;
* what is forgotten is past: ``purge_after >= 50 + 10·D``, 50 s being how long a
  transaction may wait for a lock.

A set that breaks one is refused by a sentence that names the value to change.
"""

import dataclasses
import logging
import math
import socket
from collections.abc import Sequence

from oslo_config import cfg
from oslo_db import options as db_options

from heat_liveness import errors

LOG = logging.getLogger(__name__)

GROUP = 'liveness'

JITTER = 1.1
SHORTEST_KERNEL_TIMER_LAG_SECONDS = 1.0
CLOCK_RATE = 0.001
LOCK_WAIT_SECONDS = 50.0
_LONGEST_FENCE_TIME = 3600.0
_LONGEST_STALL = 60.0
LONGEST_FENCE_SECONDS = _LONGEST_FENCE_TIME + _LONGEST_STALL
"""The most that an engine can ask others to reckon with."""

OPTIONS: list[cfg.Opt] = [
    cfg.BoolOpt('enabled', default=False,
                help='Inside heat-engine: whether each engine worker beats, watches the others and '
                     'takes over the work of dead ones. The agent and the commands do not ask.'),
    cfg.FloatOpt('report_interval', default=4.0, min=0.05, max=300.0, mutable=True,
                 help='Seconds between two beats of an engine. Each beat is one UPDATE of one row. '
                      'A longer interval costs less and needs a larger fence_time and '
                      'service_down_time.'),
    cfg.FloatOpt('fence_time', default=20.0, min=0.2, max=_LONGEST_FENCE_TIME, mutable=True,
                 help='Seconds without a successful beat after which an engine holds: it starts no '
                      'work and writes nothing until a beat succeeds. Shorter than a stall of the '
                      'database, engines hold for nothing.'),
    cfg.FloatOpt('service_down_time', default=30.0, min=1.0, max=7200.0, mutable=True,
                 help='Seconds from the last beat of an engine to its declaration as dead. It must '
                      'leave room for fence_time; a death that can be proved on the same machine '
                      'is declared at once.'),
    cfg.FloatOpt('scan_interval', default=1.0, min=0.05, max=300.0, mutable=True,
                 help='Seconds between two looks of an engine at the others. Each look is one '
                      'indexed SELECT; a longer interval delays a declaration by as much.'),
    cfg.FloatOpt('beat_retry', default=0.5, min=0.01, max=60.0, mutable=True,
                 help='Seconds before a failed beat is tried again.'),
    cfg.FloatOpt('connect_timeout', default=2.0, min=0.1, max=60.0, mutable=True,
                 help='Seconds a connection to the database may take (PostgreSQL: at least 2). '
                      'Replaces what the driver or [database] says, for the connections of this '
                      'package only.'),
    cfg.FloatOpt('read_timeout', default=3.0, min=0.1, max=60.0, mutable=True,
                 help='Seconds one read from, or one write to, the database may take before the '
                      'connection is given up. Without a bound a frozen server would hang an '
                      'engine for good.'),
    cfg.FloatOpt('database_stall_time', default=6.1, min=0.0, max=60.0, mutable=True,
                 help='Seconds a database that is well may stall. A Galera cluster that loses a '
                      'node stalls for its evs.suspect_timeout and a little more (6.1); a database '
                      'of one server may have 0.'),
    cfg.FloatOpt('stall_time', default=1.0, min=0.0, max=_LONGEST_STALL, mutable=True,
                 help='Seconds the interpreter of an engine may stall: with 256 busy threads up to '
                      '9.8, which needs a fence_time of 29 and a service_down_time of 48.'),
    cfg.FloatOpt('breaker_delay', default=60.0, min=0.0, max=3600.0, mutable=True,
                 help='Seconds a declaration waits longer when more than half of the hosts, and '
                      'more than two, look dead at once: then the fault is rather with the '
                      'network or the database.'),
    cfg.FloatOpt('purge_after', default=7 * 86400.0, min=60.0, max=366 * 86400.0, mutable=True,
                 help='Seconds after which the row of a dead engine that owns nothing is removed, '
                      'and with it the journal of that time.'),
    cfg.IntOpt('max_takeovers', default=3, min=2, max=1000, mutable=True,
               help='How many times work may be taken over because its owners died. Then it is '
                    'quarantined: shown to the operator, and given to nobody. With 1, work that '
                    'was only beside a killer would be quarantined with it.'),
    cfg.FloatOpt('lost_message_time', default=40.0, min=1.0, max=86400.0, mutable=True,
                 help='Seconds in which nothing of a stack in progress has moved, after which a '
                      'message of its traversal that nobody works on is taken for lost and sent '
                      'again. Longer than the pause of Heat between two tries of a resource (34 '
                      'with action_retry_limit 5).'),
    cfg.FloatOpt('observed_down_time', default=240.0, min=1.0, max=86400.0, mutable=True,
                 help='Seconds without a beat in the service table of Heat itself, and without an '
                      'answer to two pings, after which an engine that does not run this package '
                      'is taken for dead; never less than three of its report intervals. Nothing '
                      'stops such an engine from coming back, so this is long.'),
    cfg.FloatOpt('sweep_interval', default=10.0, min=0.05, max=3600.0, mutable=True,
                 help='Seconds between two looks at all stacks in progress, for lost messages and '
                      'timeouts. One engine looks for all.'),
    cfg.IntOpt('max_tasks', default=16, min=1, max=4096, mutable=True,
               help='How many tasks one engine runs at a time. It takes over no more than it has '
                    'room for, so that the survivors share.'),
    cfg.IntOpt('workers', default=1, min=1, max=1024,
               help='Worker processes of heat-liveness-agent; each is an engine of its own.'),
    cfg.StrOpt('host', default=None, sample_default='<hostname>', regex='.', max_length=255,
               help='Name of this host in the service table. Default: the hostname.'),
    cfg.StrOpt('binary', default='heat-liveness-agent', regex='.', max_length=255,
               help='Name of the program in the service table. Engines observe and relieve each '
                    'other within one binary and topic.'),
    cfg.StrOpt('topic', default='liveness', regex='.', max_length=255,
               help='Topic in the service table; see binary.'),
    cfg.StrOpt('work', default='native',
               help='Where the work of a dead engine is found: the name of an entry point in '
                    'heat_liveness.work.'),
]


def list_opts() -> list[tuple[str, list[cfg.Opt]]]:
    """Return the options for oslo-config-generator."""
    return [(GROUP, OPTIONS)]


def register(conf: cfg.ConfigOpts) -> None:
    """Register ``[liveness]`` and oslo.db's ``[database]``; doing it twice is harmless."""
    conf.register_opts(OPTIONS, group=GROUP)
    conf.register_opts(db_options.database_opts, group='database')


def load(conf: cfg.ConfigOpts, arguments: Sequence[str], program: str, version: str) -> None:
    """Read the configuration: ``--config-file`` if given, else what heat-manage reads.

    :raises ConfigError: a file or an argument cannot be used
    """
    register(conf)
    try:
        conf(list(arguments), project='heat', prog=program, version=version,
             default_config_files=cfg.find_config_files('heat', 'heat-engine'),
             default_config_dirs=cfg.find_config_dirs('heat', 'heat-engine'))
    except (cfg.Error, OSError, UnicodeError) as error:
        raise errors.ConfigError(f'The configuration cannot be read: {error}') from error


def _up(seconds: float) -> float:
    """Round up to a tenth of a second, the precision in which values are proposed."""
    return math.ceil(round(seconds * 10, 6)) / 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """One engine's options, all times in seconds, fixed for the life of the engine."""

    report_interval: float = 4.0
    fence_time: float = 20.0
    service_down_time: float = 30.0
    scan_interval: float = 1.0
    beat_retry: float = 0.5
    connect_timeout: float = 2.0
    read_timeout: float = 3.0
    database_stall_time: float = 6.1
    stall_time: float = 1.0
    breaker_delay: float = 60.0
    purge_after: float = 7 * 86400.0
    max_takeovers: int = 3
    lost_message_time: float = 40.0
    sweep_interval: float = 10.0
    observed_down_time: float = 240.0
    max_tasks: int = 16
    workers: int = 1
    host: str = dataclasses.field(default_factory=socket.gethostname)
    binary: str = 'heat-liveness-agent'
    topic: str = 'liveness'
    work: str = 'native'

    @classmethod
    def from_conf(cls, conf: cfg.ConfigOpts) -> 'Settings':
        """Take the options as they stand now.

        :raises ConfigError: a value is out of range, of the wrong type, or unsafe beside another
        """
        try:
            group = conf[GROUP]
            values = {field.name: group[field.name] for field in dataclasses.fields(cls)}
        except (cfg.Error, ValueError) as error:
            raise errors.ConfigError(f'An option of [{GROUP}] cannot be used: {error}') from error
        for name, value in values.items():
            # The bounds of the options let nan pass, and so would every comparison below.
            if isinstance(value, float) and not math.isfinite(value):
                raise errors.ConfigError(f'{name} in [{GROUP}] is {value}: give a number.')
        if values['host'] is None:
            del values['host']
        settings = cls(**values)
        broken = settings.violations()
        if broken:
            raise errors.ConfigError(
                f'The options of [{GROUP}] are not safe together. ' + ' '.join(broken))
        return settings

    @property
    def candidate_age(self) -> float:
        """Age of a beat, by the database's time, that makes its row a candidate (c)."""
        return candidate_age_for(self.report_interval)

    @property
    def window(self) -> float:
        """How long a candidate is watched, on the observer's own clock (W)."""
        return self.service_down_time - self.candidate_age

    @property
    def settle(self) -> float:
        """How long after a gap in the view an observer counts nothing: all may beat first."""
        return (JITTER * self.report_interval + self.beat_retry
                + self.connect_timeout + self.read_timeout)

    @property
    def longest_silence(self) -> float:
        """How long after the start of a beat the next one starts, unless something is amiss."""
        return JITTER * self.report_interval + self.read_timeout + self.stall_time

    @property
    def longest_read(self) -> float:
        """How long a read lasts at most, by its timeouts, unless something is amiss."""
        return self.connect_timeout + 2 * self.read_timeout + self.stall_time

    @property
    def shortest_fence(self) -> float:
        """The least ``fence_time`` that no stall of a well database can exceed."""
        return (JITTER * self.report_interval + self.database_stall_time + self.beat_retry
                + self.longest_read)

    @property
    def longest_lull(self) -> float:
        """How long a living engine may seem silent for an outage that an observer cannot notice.

        Such a one lies between two of the observer's own beats, or within one of its reads; then
        the engine still has to get through.
        """
        return (self.shortest_fence - self.database_stall_time
                + max(self.longest_silence, self.longest_read))

    @property
    def kernel_timer_lag(self) -> float:
        """How long after ``fence_time`` the kernel ends a process that cannot hold (k).

        The watchdog, which tells the kernel that it can, must get to run before that.
        """
        return max(SHORTEST_KERNEL_TIMER_LAG_SECONDS, self.stall_time)

    @property
    def asked_fence_time(self) -> float:
        """The ``fence_time`` that the others must reckon with: longer by a longer lag."""
        return self.fence_time + self.kernel_timer_lag - SHORTEST_KERNEL_TIMER_LAG_SECONDS

    @property
    def declaration_bound(self) -> float:
        """Longest time from a death to its declaration, while the view is good."""
        return self.service_down_time + self.scan_interval + 2 * self.read_timeout

    def violations(self) -> list[str]:
        """Return a sentence for each inequality that these options break."""
        found = []
        if self.fence_time + 1e-6 < self.shortest_fence:
            found.append(
                f'fence_time is {self.fence_time:g} s, shorter than what a stall that harms '
                f'nobody may last ({self.shortest_fence:.2f} s, from report_interval, '
                f'database_stall_time, beat_retry, connect_timeout, read_timeout and stall_time): '
                f'set fence_time to {_up(self.shortest_fence):g} or more.')
        # What follows is measured against the value just proposed, so that all of them do.
        fence = _up(self.shortest_fence) if found else self.fence_time
        window = window_for(fence + self.asked_fence_time - self.fence_time)
        down = _up(max(self.candidate_age + window + 0.05, self.longest_lull))
        if self.window <= window or self.service_down_time < self.longest_lull:
            found.append(
                f'service_down_time is {self.service_down_time:g} s, so an engine could be '
                f'declared dead before it holds (fence_time {fence:g} s), or for an outage of the '
                f'database that nobody notices: set service_down_time to {down:g} or more.')
        down = max(down, self.service_down_time)
        if self.scan_interval > down / 4:
            found.append(
                f'scan_interval is {self.scan_interval:g} s, too long to see an engine several '
                f'times before it is declared dead: set scan_interval to '
                f'{math.floor(down / 4 * 10) / 10:g} or less.')
        if self.purge_after < LOCK_WAIT_SECONDS + 10 * down:
            found.append(
                f'purge_after is {self.purge_after:g} s, so a dead engine could be forgotten '
                f'while a transaction of its own may still land: set purge_after to '
                f'{_up(LOCK_WAIT_SECONDS + 10 * down):g} or more.')
        return found


def reloaded(conf: cfg.ConfigOpts, last_good: Settings) -> Settings:
    """Return the options as they stand now, or the last good ones where they cannot be used.

    A worker that is started after a reload must not stay without a heartbeat because of a
    slip in a file.
    """
    try:
        return Settings.from_conf(conf)
    except errors.ConfigError as error:
        LOG.error('The options of before are kept: %s', error)
        return last_good


def candidate_age_for(report_interval: float) -> float:
    """Return the age in seconds at which a beat is late, of an engine that beats so often."""
    return max(1.5 * report_interval, JITTER * report_interval + 1.0)


def window_for(fence_time: float) -> float:
    """Return the shortest safe window, in seconds, to watch an engine that asks for this.

    No engine can ask for more than the options allow; a row that does was written by another,
    and must not keep its work from being taken over for ever.
    """
    # In this order it holds for nan, too, which is not less than anything.
    asked = min(LONGEST_FENCE_SECONDS, fence_time)
    held = (asked + SHORTEST_KERNEL_TIMER_LAG_SECONDS) * (1 + CLOCK_RATE) + 1.0
    return held / (1 - CLOCK_RATE)
