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

"""Watching engines that do not beat for us: through Heat's own service table, and by pings.

What can be seen of such an engine is a row in which it writes its own time once in
``report_interval`` (60 s, to the second).  A row may be missing (the first beat failed),
purged, soft-deleted under a living engine, or come back.  So:

* **A verdict needs more.**  The row has not moved, by our own eyes and our own clock, for
  ``observed_down_time``, which is at least three of its intervals; time without a good
  view counts for nothing, and after a gap each engine may beat first.  And the engine has
  answered neither of two pings over the message queue, half-way and at the end.  An engine
  that has no row at all is judged by the pings alone, over the same time.
* **Only who holds work is watched.**  The table keeps the rows of all engines that ever were.
* **A verdict is recorded** as for any engine: a service row (of protocol 0, which nobody
  judges by its beats) that is declared dead, on the evidence ``observed``.
* **It can be wrong.**  An engine that was stopped for that long comes back and writes; or, as
  its row in Heat's table may be gone and Heat writes it only once, answers a ping, which it is
  sent once in ``report_interval`` while it holds work.  Then its row here is removed, so that
  nobody takes anything from it any more, and a WARNING says so.
"""

import dataclasses
import datetime
import logging
import math
from collections.abc import Callable, Collection, Mapping
from concurrent import futures

import sqlalchemy as sa

from heat_liveness import clock as clocks
from heat_liveness import conf
from heat_liveness import engine as engines
from heat_liveness.db.database import Database
from heat_liveness.db.members import Members, ServiceRow
from heat_liveness.heat import bridge, tables
from heat_liveness.heat.rows import HeatRows

LOG = logging.getLogger(__name__)

EVIDENCE = 'observed'

_ASK_AGAIN_SECONDS = 60.0
"""How often an engine that was declared dead and holds work is asked whether it lives."""
_LONGEST_GAP_SECONDS = 30.0
"""Longer between two looks than this, and nothing is known of what was in between."""
_PINGERS = 8

_service = tables.service


@dataclasses.dataclass(frozen=True, kw_only=True)
class Observed:
    """What Heat's own table says of an engine; of one without a row, next to nothing."""

    engine_id: str
    host: str = 'unknown'
    hostname: str = 'unknown'
    report_interval: int = 60
    beat: datetime.datetime | None = None

    @property
    def dead(self) -> ServiceRow:
        """The row that a verdict would write."""
        never = datetime.datetime.min  # noqa: DTZ901 - as the database's times, without a zone
        return ServiceRow(
            engine_id=self.engine_id, host=self.host, hostname=self.hostname,
            binary=bridge.BINARY, topic=bridge.TOPIC, report_interval=self.report_interval,
            fence_time=0, protocol=engines.OBSERVED, state='dead', report_count=0,
            created_at=never, updated_at=never, age=0, evidence=EVIDENCE,
            process=engines.Process(0, 0, 0, 0, ''))


@dataclasses.dataclass
class _Watch:
    """How long an engine was seen not to beat, in seconds of good view, and its missed pings."""

    beat: datetime.datetime | None
    watched: float = 0.0
    settle_until: float = 0.0
    pings: int = 0
    alive: bool = False
    """Whether it was seen to beat, or has answered."""


def observed(database: Database) -> dict[str, Observed]:
    """Read Heat's service table, deleted rows too: a living engine brings its row back."""
    beat = sa.func.coalesce(_service.c.updated_at, _service.c.created_at).label('beat')
    with database.autocommit() as connection:
        rows = connection.execute(
            sa.select(_service.c.engine_id, _service.c.host, _service.c.hostname,
                      _service.c.report_interval, beat)
            .where(_service.c.binary == bridge.BINARY).order_by(beat)).all()
    return {row.engine_id: Observed(**row._mapping) for row in rows}


class Watcher:
    """Watches the engines that do not beat for us.  For use by one thread."""

    def __init__(self, me: str, settings: conf.Settings, database: Database, members: Members,
                 rows: HeatRows, clock: clocks.Clock, ping: Callable[[str], bool]) -> None:
        """Watch nobody yet.

        :param ping: asks an engine over the message queue whether it is there
        """
        self._me = me
        self._settings = settings
        self._database = database
        self._members = members
        self._rows = rows
        self._clock = clock
        self._ping = ping
        self._pool = futures.ThreadPoolExecutor(_PINGERS, thread_name_prefix='liveness-ping')
        self._watches: dict[str, _Watch] = {}
        self._verdicts: dict[str, datetime.datetime | None] = {}
        """The last beat of each engine that was declared dead."""
        self._asked = -math.inf
        """When those were last asked whether they live."""
        self._looked: float | None = None
        """When the last look began, and then when it ended."""
        self._ended = -math.inf
        self.suspects: set[str] = set()
        """Engines that hold work, have not been seen to live, and are not judged yet."""

    def window(self, engine: Observed) -> float:
        """Return how long an engine is watched, in seconds."""
        return max(self._settings.observed_down_time, 3.0 * engine.report_interval)

    def look(self) -> list[ServiceRow]:
        """Look at all of them once; return the rows of those that are declared dead now.

        :raises DatabaseError: time without a view counts for nothing
        """
        now = self._clock.now()
        found = observed(self._database)
        known = {row.engine_id: row for row in self._members.all()}
        holders = self._rows.claims.unknown_holders(())
        revived = self._revive([row for row in known.values() if row.ended and not row.judged],
                               found, holders, now)
        # One that beats for us is not ours to judge, whatever its version.
        holders -= {engine_id for engine_id, row in known.items()
                    if row.protocol != engines.OBSERVED or row.ended} - revived
        gap = self._looked is None or now - self._ended > _LONGEST_GAP_SECONDS
        passed = 0.0 if self._looked is None or gap else min(
            now - self._looked, _LONGEST_GAP_SECONDS)
        self._looked = now
        watched = {engine_id: found.get(engine_id, Observed(engine_id=engine_id))
                   for engine_id in holders}
        for engine in watched.values():
            self._watch(engine, now, passed, gap=gap)
        self._watches = {engine_id: self._watches[engine_id] for engine_id in watched}
        judged = self._judge(watched)
        # While engines are asked nothing is missed: their rows will say when they beat.
        self._ended = self._clock.now()
        self.suspects = {engine_id for engine_id in watched
                         if not self._watches[engine_id].alive
                         } - {row.engine_id for row in judged}
        return judged

    def _watch(self, engine: Observed, now: float, passed: float, *, gap: bool) -> None:
        watch = self._watches.setdefault(engine.engine_id, _Watch(engine.beat))
        if engine.beat != watch.beat:
            self._watches[engine.engine_id] = _Watch(engine.beat, alive=True)
            return
        if gap:
            # After an outage each engine beats at its own time; let all of them.
            watch.settle_until = now + 1.1 * engine.report_interval if watch.watched else now
        elif now >= watch.settle_until:
            watch.watched += passed

    def _judge(self, watched: dict[str, Observed]) -> list[ServiceRow]:
        due = [engine for engine_id, engine in watched.items()
               if self._watches[engine_id].watched >= self.window(engine) / 2]
        hosts = {engine.host for engine in watched.values()}
        silent = {engine.host for engine in due
                  if self._watches[engine.engine_id].watched >= self.window(engine)}
        mass = len(silent) > 2 and len(silent) * 2 > len(hosts)
        late = [engine for engine in due if self._needs_ping(engine, mass=mass)]
        found = []
        for engine, answered in zip(late, self._ask(late), strict=True):
            watch = self._watches[engine.engine_id]
            # A queue that is away is no silence of the engine's.
            if answered is not False:
                self._watches[engine.engine_id] = _Watch(engine.beat, alive=True)
                continue
            watch.pings += 1
            if watch.pings >= 2:
                row = self._declare(engine, watch, mass=mass)
                found += [row] if row is not None else []
        return found

    def _needs_ping(self, engine: Observed, *, mass: bool) -> bool:
        watch = self._watches[engine.engine_id]
        delay = self._settings.breaker_delay if mass else 0.0
        return watch.pings == 0 or watch.watched >= self.window(engine) + delay

    def _ask(self, those: Collection[Observed]) -> list[bool | None]:
        """Return of each engine whether it answers; None where the queue is away."""
        return list(self._pool.map(self._answers, those))

    def _answers(self, engine: Observed) -> bool | None:
        try:
            return self._ping(engine.engine_id)
        except Exception as error:
            LOG.debug('Engine %s could not be asked: %s', engine.engine_id, error)
            return None

    def _declare(self, engine: Observed, watch: _Watch, *, mass: bool) -> ServiceRow | None:
        if observed(self._database).get(engine.engine_id, engine).beat != watch.beat:
            return None
        row = self._members.introduce(engine.engine_id, engine.host, engine.hostname,
                                      bridge.BINARY, bridge.TOPIC, engine.report_interval)
        if row is None or not row.live:
            return None
        detail = {'watched_seconds': round(watch.watched, 1), 'window_seconds': self.window(engine),
                  'pings_missed': watch.pings, 'last_beat': str(watch.beat)}
        if not self._members.declare(row, self._me, EVIDENCE, mass, detail):
            return None
        LOG.warning('Engine %s on %s is dead: its row in the service table has not moved for %.0f '
                    's, and it answered no ping. It has no fence; see that its process has ended.',
                    engine.engine_id, engine.host, watch.watched)
        return self._members.read(engine.engine_id)

    def _revive(self, dead: Collection[ServiceRow], found: Mapping[str, Observed],
                holders: Collection[str], now: float) -> set[str]:
        """Remove the verdict on engines that live, as they must be robbed no more; return them."""
        signs = self._signs({row.engine_id: found.get(
            row.engine_id, Observed(engine_id=row.engine_id)) for row in dead}, holders, now)
        revived = set()
        for row in dead:
            if row.engine_id in signs and self._members.disown(row.engine_id):
                LOG.warning('Engine %s on %s was declared dead and %s: it had only been stopped. '
                            'What it held may have been done twice.', row.engine_id, row.host,
                            signs[row.engine_id])
                beat = found[row.engine_id].beat if row.engine_id in found else None
                self._watches[row.engine_id] = _Watch(beat, alive=True)
                revived.add(row.engine_id)
        return revived

    def _signs(self, dead: Mapping[str, Observed], holders: Collection[str],
               now: float) -> dict[str, str]:
        """Return how engines that were declared dead have shown that they live."""
        before, self._verdicts = self._verdicts, {}
        signs: dict[str, str] = {}
        due = []
        # All at one look: who waits for answers sees nothing meanwhile.
        again = now - self._asked >= _ASK_AGAIN_SECONDS
        for name, engine in dead.items():
            watch = self._watches.get(name, _Watch(engine.beat))
            beat = self._verdicts[name] = before.get(name, watch.beat)
            if engine.beat not in {None, beat}:
                signs[name] = 'beats again'
            # A verdict that was not reached here is doubted before it is acted on.
            elif name in holders and (again or not (name in before or name in self._watches)):
                due.append(engine)
        if again and due:
            self._asked = now
        for engine, answered in zip(due, self._ask(due), strict=True):
            if answered:
                signs[engine.engine_id] = 'answers'
        return signs
