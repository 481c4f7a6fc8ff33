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

"""The demo takes resources and their dependencies from a template as Heat does."""

import itertools
import json
import pathlib
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from heat_liveness import errors
from heat_liveness.cmd import demo
from heat_liveness.cmd.demo import template

HEAD = 'heat_template_version: 2021-04-16\n'


def load(tmp_path: pathlib.Path, text: str) -> template.Template:
    path = tmp_path / 'some.yaml'
    path.write_text(textwrap.dedent(text))
    return template.load(path)


def requirements(tmp_path: pathlib.Path, properties: str) -> set[str]:
    """Return what a resource with these properties (in YAML's flow style) requires."""
    resources = f'{{x: {{type: T, properties: {properties}}}, a: {{type: T}}, b: {{type: T}}}}'
    return set(load(tmp_path, f'{HEAD}resources: {resources}\n').requires['x'])


@pytest.mark.parametrize(('name', 'least'), [('webshop', 20), ('platform', 100)])
def test_the_shipped_templates_have_many_resources_with_real_dependencies(
        name: str, least: int) -> None:
    shipped = template.load(demo.TEMPLATES / f'{name}.yaml')
    assert shipped.name == name
    assert len(shipped.requires) >= least
    assert sum(map(len, shipped.requires.values())) > len(shipped.requires)
    assert 'subnet' in ' '.join(shipped.requires['web_1_port'])


def test_a_resource_stands_behind_what_it_requires() -> None:
    seen: set[str] = set()
    for name, needs in template.load(demo.TEMPLATES / 'platform.yaml').requires.items():
        assert needs <= seen
        seen.add(name)


@pytest.mark.parametrize('properties', [
    '{p: {get_resource: a}}',
    '{p: {get_attr: [a, address]}}',
    '{p: [1, [{get_resource: a}]]}',
    '{p: {q: {r: {get_attr: [a, networks, 0, {get_param: n}]}}}}',
    '{p: {str_replace: {template: t, params: {$A: {get_attr: [a, address]}}}}}',
    "{p: {list_join: ['', [{get_resource: a}, {get_param: b}]]}}",
    '{p: {if: [c, {get_resource: a}, null]}}',
    '{p: {get_attr: [a, {get_param: b}]}}',
])
def test_references_are_found_wherever_they_stand(tmp_path: pathlib.Path, properties: str) -> None:
    assert requirements(tmp_path, properties) == {'a'}


def test_references_in_the_arguments_of_a_reference_count(tmp_path: pathlib.Path) -> None:
    assert requirements(tmp_path, '{p: {get_attr: [a, {get_attr: [b, name]}]}}') == {'a', 'b'}


@pytest.mark.parametrize('properties', [
    '{p: {get_param: a}}',
    '{p: {get_file: a}}',
    '{p: a}',
    # A function is a mapping of one key.
    '{p: {get_resource: a, other: 1}}',
    'null',
])
def test_what_is_no_reference_is_no_dependency(tmp_path: pathlib.Path, properties: str) -> None:
    assert requirements(tmp_path, properties) == set()


def test_depends_on_and_metadata_count(tmp_path: pathlib.Path) -> None:
    found = load(tmp_path, HEAD + """\
resources:
  a: {type: T}
  b: {type: T, depends_on: a}
  c: {type: T, depends_on: [a, b], metadata: {m: {get_resource: d}}}
  d: {type: T, depends_on: null}
""").requires
    assert found == {'a': frozenset(), 'b': {'a'}, 'c': {'a', 'b', 'd'}, 'd': frozenset()}


def test_aliases_count_for_each_resource_that_has_them(tmp_path: pathlib.Path) -> None:
    found = load(tmp_path, HEAD + """\
resources:
  a: {type: T}
  b: {type: T, properties: {p: &p [{get_resource: a}]}}
  c: {type: T, properties: {p: *p}}
""").requires
    assert found['b'] == found['c'] == {'a'}


def test_an_alias_of_itself_ends(tmp_path: pathlib.Path) -> None:
    found = load(tmp_path, HEAD + 'resources: {a: {type: T, properties: &p {p: *p}}}\n')
    assert found.requires == {'a': frozenset()}


@pytest.mark.parametrize(('text', 'message'), [
    ('- a', 'not a mapping with heat_template_version'),
    ('', 'not a mapping with heat_template_version'),
    ('resources: {a: {type: T}}', 'no heat_template_version'),
    ('AWSTemplateFormatVersion: 2010-09-09\nResources: {}', 'no heat_template_version'),
    (HEAD, 'no resources'),
    (HEAD + 'resources: {}', 'no resources'),
    (HEAD + 'resources: [a]', 'no resources'),
    (HEAD + 'resources: {a: [b]}', 'the resource a is not a mapping'),
    (HEAD + 'resources: {a: null}', 'the resource a is not a mapping'),
    (HEAD + 'resources: {a: {properties: {}}}', 'the resource a has no type'),
    (HEAD + 'resources: {a: {type: [T]}}', 'the resource a has no type'),
    (HEAD + 'resources: {a: {type: T, properties: [b]}}', 'the properties of the resource a'),
    (HEAD + 'resources: {1: {type: T}}', '1 is no name of a resource'),
    (HEAD + 'resources: {a/b: {type: T}}', "'a/b' is no name of a resource"),
    (HEAD + f'resources: {{{"a" * 201}: {{type: T}}}}', 'longer than 200 characters'),
    (HEAD + 'resources: {a: {type: T, depends_on: b}}', 'a refers to b, which is no resource'),
    (HEAD + 'resources: {a: {type: T, depends_on: {b: 1}}}', 'neither a name nor a list'),
    (HEAD + 'resources: {a: {type: T, depends_on: [1]}}', 'neither a name nor a list'),
    (HEAD + 'resources: {a: {type: T, properties: {p: {get_resource: b}}}}',
     'a refers to b, which is no resource'),
    (HEAD + 'resources: {a: {type: T, properties: {p: {get_resource: [a]}}}}',
     'get_resource in the resource a'),
    (HEAD + 'resources: {a: {type: T, properties: {p: {get_attr: a}}}}',
     'get_attr in the resource a'),
    (HEAD + 'resources: {a: {type: T, properties: {p: {get_attr: []}}}}',
     'get_attr in the resource a'),
    (HEAD + 'resources: {a: {type: T, depends_on: a}}', 'wait for each other: a -> a'),
    (HEAD + 'resources: {a: {type: T, depends_on: b}, b: {type: T, depends_on: [c]}, '
     'c: {type: T, properties: {p: {get_resource: a}}}}', 'wait for each other: '),
    (HEAD + 'resources: {a: {type: T}', 'is not YAML: .* in line 3, column 1'),
    (HEAD + 'a: *b', 'is not YAML: .*undefined alias'),
    ('a: !!python/object/apply:os.getpid []', 'is not YAML: could not determine a constructor'),
    ('a: 2021-13-45', 'is not YAML: month must be'),
    ('\x01', 'is not YAML: '),
    ('a: !!bool maybe', 'is not YAML: '),
    ('a: !!int ""', 'is not YAML: '),
    ('a: !!float ""', 'is not YAML: '),
    ('a: !!timestamp then', 'is not YAML: '),
    (f'a: {"1" * 5000}', 'is not YAML: '),
    ('# ' + 'x' * 600_000, 'larger than the 524288 bytes'),
    (HEAD + 'resources: {"a ": {type: T}}', "'a ' is no name of a resource"),
    (HEAD + 'resources: {" ": {type: T}}', "' ' is no name of a resource"),
    (HEAD + 'resources: {"a\\0": {type: T}}', 'is no name of a resource'),
    (HEAD + 'resources: {"\\ud800": {type: T}}', 'is no name of a resource'),
    (HEAD + 'resources: {"\\e[2J": {type: T}}', 'is no name of a resource'),
    ('[' * 20000, 'is nested too deeply'),
])
def test_a_malformed_template_is_a_sentence(
        tmp_path: pathlib.Path, text: str, message: str) -> None:
    with pytest.raises(errors.TemplateError, match=message) as caught:
        load(tmp_path, text + '\n')
    assert str(tmp_path / 'some.yaml') in str(caught.value)
    assert '\n' not in str(caught.value)


def test_the_circle_is_named_in_the_order_of_waiting(tmp_path: pathlib.Path) -> None:
    with pytest.raises(errors.TemplateError) as caught:
        load(tmp_path, HEAD + """\
resources:
  a: {type: T, depends_on: b}
  b: {type: T, depends_on: c}
  c: {type: T, depends_on: a}
""")
    circle = str(caught.value).rstrip('.').rpartition(': ')[2].split(' -> ')
    assert len(circle) == 4
    assert all(step in {('a', 'b'), ('b', 'c'), ('c', 'a')}
               for step in itertools.pairwise(circle))


def test_a_file_that_cannot_be_read_is_a_sentence(tmp_path: pathlib.Path) -> None:
    for path in (tmp_path, tmp_path / 'none.yaml'):
        with pytest.raises(errors.TemplateError, match=f'{path} cannot be read: '):
            template.load(path)
    binary = tmp_path / 'binary.yaml'
    binary.write_bytes(b'\xff\xfe\xff\x00\x80')
    with pytest.raises(errors.TemplateError, match='is not YAML'):
        template.load(binary)
    with pytest.raises(errors.TemplateError, match='embedded null byte'):
        template.load(pathlib.Path('a\0b'))


def test_what_has_no_end_is_not_read_to_its_end() -> None:
    with pytest.raises(errors.TemplateError, match='larger than'):
        template.load(pathlib.Path('/dev/zero'))


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(['a', 'b', 'get_resource', '']),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(['a', 'get_resource', 'get_attr', 'type', 'properties', 'depends_on',
                         'resources', 'heat_template_version', 'metadata']), inner, max_size=4),
    max_leaves=30))
def test_whatever_stands_in_a_template_it_is_taken_or_refused(
        tmp_path_factory: pytest.TempPathFactory, content: object) -> None:
    path = tmp_path_factory.getbasetemp() / 'any.yaml'
    for resources in (content, {'a': content}, {'a': {'type': 'T', 'properties': content}}):
        # JSON is YAML too.
        path.write_text(json.dumps({'heat_template_version': '2021-04-16',
                                    'resources': resources}))
        try:
            found = template.load(path).requires
        except errors.TemplateError:
            continue
        assert all(needs <= found.keys() for needs in found.values())
