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

"""Writing the journal of what was done, in the transaction that does it.

Subject and generation of an entry are unique.  A row that was brought back by hand (a dead
engine set to ``up``, a lock deleted and made anew) may come by the same ones again; what is
done with it must not fail for ever because it was done once before.  So an entry takes the
next generation that is free, which is the row's own as a rule.
"""

import json
from collections.abc import Mapping

import sqlalchemy as sa

from heat_liveness.db import models, times

_t = models.takeover


def entry(kind: str, subject: str, generation: int, engine_id: object, taken_by: str,
          detail: Mapping[str, object], pieces: int = 1) -> sa.Insert:
    """Return the statement that writes an entry."""
    taken = sa.select(sa.func.max(_t.c.generation).label('last')).where(
        _t.c.subject == subject, _t.c.generation >= generation).subquery('taken')
    values = {'kind': kind, 'subject': subject, 'engine_id': engine_id, 'taken_by': taken_by,
              'pieces': pieces, 'status': 'done', 'detail': json.dumps(detail)}
    return _t.insert().from_select(
        ['generation', 'created_at', 'updated_at', *values],
        sa.select(sa.func.coalesce(taken.c.last + 1, sa.literal(generation, sa.BigInteger())),
                  times.now(), times.now(),
                  *(sa.literal(value, _t.c[name].type) for name, value in values.items())))
