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

"""One row that somebody has edited does not stand in the way of the others."""

import pytest

from heat_liveness.db import stored


@pytest.mark.parametrize(('text', 'found'), [
    ('null', None), ('[1, "a"]', [1, 'a']), ('', ''), ('{broken', '{broken'), ('NaN?', 'NaN?'),
])
def test_a_text_that_is_not_json_is_passed_on(text: str, found: object) -> None:
    assert stored.value(text) == found


@pytest.mark.parametrize(('text', 'found'), [
    ('{"a": 1}', {'a': 1, 'b': 2}), ('{"b": 1}', {'b': 1}), ('[]', {'b': 2, 'text': '[]'}),
    ('{broken', {'b': 2, 'text': '{broken'}),
])
def test_a_mapping_has_its_defaults_whatever_was_stored(
        text: str, found: dict[str, object]) -> None:
    assert stored.mapping(text, b=2) == found
