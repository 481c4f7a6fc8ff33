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

"""Which resources a HOT template has, and which of them each one needs first.

Heat's own rule, and no more of Heat than that: a resource needs what its ``depends_on``
names, and what a ``get_resource`` or ``get_attr`` names anywhere in its properties and
metadata.  A function is a mapping of exactly one key, wherever it stands: in a list, in the
params of a ``str_replace``, in the arguments of another function.
"""

import dataclasses
import graphlib
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from heat_liveness import errors

LONGEST_NAME = 200
"""Characters of a resource's name that fit into the name of a lock."""

LARGEST_BYTES = 512 * 1024
"""As much as Heat takes (its ``max_template_size``)."""


@dataclasses.dataclass(frozen=True)
class Template:
    """The resources of a template; each stands behind those that it needs."""

    name: str
    """Of the file, without its directory and suffix."""
    requires: Mapping[str, frozenset[str]]
    """For each resource, those that have to be done before it."""


def load(path: pathlib.Path) -> Template:
    """Read a template.

    :raises TemplateError: the file cannot be read, is no HOT template, or its resources
        cannot be put in order
    """
    try:
        requires = _requires(_document(_text(path)))
    except OSError as error:
        raise errors.TemplateError(
            f'The template {path} cannot be read: {error.strerror}.') from error
    except ValueError as error:
        raise errors.TemplateError(f'The template {path!s:.60} cannot be read: {error}.') from error
    except RecursionError as error:
        raise errors.TemplateError(
            f'The template {path} is nested too deeply.') from error
    except errors.TemplateError as error:
        raise errors.TemplateError(f'The template {path} cannot be used: {error}') from None
    return Template(path.stem, requires)


def _text(path: pathlib.Path) -> bytes:
    with path.open('rb') as file:
        # A device may have no end.
        text = file.read(LARGEST_BYTES + 1)
    if len(text) > LARGEST_BYTES:
        raise errors.TemplateError(
            f'it is larger than the {LARGEST_BYTES} bytes that Heat would take.')
    return text


def _document(text: bytes) -> Any:
    try:
        return yaml.safe_load(text)
    except RecursionError:
        raise
    except Exception as error:
        # Of a value that does not fit its tag PyYAML says whatever happens to it.
        raise errors.TemplateError(f'it is not YAML: {_where(error)}.') from error


def _where(error: Exception) -> str:
    mark = getattr(error, 'problem_mark', None)
    if mark is None:
        return ' '.join(str(error).split()).rstrip('.')
    return f'{getattr(error, "problem", error)} in line {mark.line + 1}, column {mark.column + 1}'


def _requires(document: Any) -> dict[str, frozenset[str]]:
    if not isinstance(document, dict):
        raise errors.TemplateError(
            'it is not a mapping with heat_template_version and resources.')
    if not document.get('heat_template_version'):
        raise errors.TemplateError(
            'it has no heat_template_version; only HOT templates are understood.')
    resources = document.get('resources')
    if not isinstance(resources, dict) or not resources:
        raise errors.TemplateError('it has no resources, or they are not a mapping.')
    requires = {_name(name): _needs(name, definition) for name, definition in resources.items()}
    for name, needs in requires.items():
        for unknown in sorted(needs - requires.keys()):
            raise errors.TemplateError(
                f'the resource {name} refers to {unknown}, which is no resource of it.')
    try:
        order = tuple(graphlib.TopologicalSorter(requires).static_order())
    except graphlib.CycleError as error:
        circle = ' -> '.join(reversed(error.args[1]))
        raise errors.TemplateError(f'its resources wait for each other: {circle}.') from error
    return {name: requires[name] for name in order}


def _name(name: Any) -> str:
    if (not isinstance(name, str) or not name.isprintable() or not name.strip()
            or name.endswith(' ') or '/' in name):
        raise errors.TemplateError(
            f'{name!r:.60} is no name of a resource: use printable text without a slash, and '
            f'without a space at its end, in quotes if need be.')
    if len(name) > LONGEST_NAME:
        raise errors.TemplateError(
            f'the name of the resource {name[:20]}... is longer than {LONGEST_NAME} characters.')
    return name


def _needs(name: str, definition: Any) -> frozenset[str]:
    if not isinstance(definition, dict):
        raise errors.TemplateError(
            f'the resource {name} is not a mapping with a type and properties.')
    if not isinstance(definition.get('type'), str):
        raise errors.TemplateError(f'the resource {name} has no type.')
    for section in ('properties', 'metadata'):
        if not isinstance(definition.get(section, {}), dict | None):
            raise errors.TemplateError(f'the {section} of the resource {name} are not a mapping.')
    explicit = definition.get('depends_on') or []
    needs = [explicit] if isinstance(explicit, str) else explicit
    if not isinstance(needs, list) or not all(isinstance(need, str) for need in needs):
        raise errors.TemplateError(
            f'depends_on of the resource {name} is neither a name nor a list of names.')
    return frozenset(needs) | {
        _target(name, function, arguments) for section in ('properties', 'metadata')
        for function, arguments in _references(definition.get(section), set())}


def _references(snippet: Any, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """Find the functions that name a resource.

    :param seen: what has been looked through already; aliases of YAML may lead in circles
    """
    if not isinstance(snippet, dict | list) or id(snippet) in seen:
        return
    seen.add(id(snippet))
    if isinstance(snippet, dict) and len(snippet) == 1:
        (function, arguments), = snippet.items()
        if function in {'get_resource', 'get_attr'}:
            yield function, arguments
    for part in snippet.values() if isinstance(snippet, dict) else snippet:
        yield from _references(part, seen)


def _target(name: str, function: str, arguments: Any) -> str:
    target = arguments
    if function == 'get_attr':
        target = arguments[0] if isinstance(arguments, list) and arguments else None
    if not isinstance(target, str):
        form = {'get_resource': 'a name', 'get_attr': 'a list that begins with a name'}[function]
        raise errors.TemplateError(
            f'{function} in the resource {name} is given {target!r} and not {form}.')
    return target
