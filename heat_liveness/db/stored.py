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

"""Reading what is kept as JSON, without trusting that we wrote it.

One row that somebody has edited must not stand in the way of all others: a text that is
not JSON is passed on as it stands, to be shown or refused by whoever has use for it, and what
is JSON of another shape than ours is left out.
"""

import json
from typing import Any


def value(text: str) -> Any:
    """Return the value of a JSON text, or the text itself if it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def mapping(text: str, **defaults: object) -> dict[str, Any]:
    """Return the mapping of a JSON text; what is none stands under ``text``."""
    found = value(text)
    return {**defaults, **found} if isinstance(found, dict) else {**defaults, 'text': text}


def mappings(found: object) -> list[dict[str, Any]]:
    """Return the mappings in a list; of anything else, none."""
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def triples(found: object) -> list[tuple[Any, Any, Any]]:
    """Return the lists of three in a list; of anything else, none."""
    return [(each[0], each[1], each[2]) for each in found
            if isinstance(each, list) and len(each) == 3] if isinstance(found, list) else []
