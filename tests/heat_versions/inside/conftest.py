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

# ruff: noqa: INP001 - it is run where Heat is, apart from the other tests

"""One bench for each test."""

import pathlib
from collections.abc import Iterator

import pytest
from oslo_service import backend

# As heat-engine does, before anything of Heat's engine is imported.
backend.init_backend(backend.BackendType.THREADING)

from bench import Bench, benches, prepare  # noqa: E402


@pytest.fixture(scope='session')
def pristine(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A database with the tables of Heat and of this package."""
    return prepare(tmp_path_factory.mktemp('pristine'))


@pytest.fixture
def bench(tmp_path: pathlib.Path, pristine: pathlib.Path) -> Iterator[Bench]:
    """Heat, without a stack, and an engine that survives."""
    yield from benches(tmp_path, pristine)
