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

"""The sample configuration says what the options say."""

import pathlib

import pytest
from oslo_config import generator

ROOT = pathlib.Path(__file__).parents[2]


def test_the_sample_is_what_make_sample_writes(
        tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    generated = tmp_path / 'sample'
    generator.main(['--config-file', 'config-generator.conf', '--output-file', str(generated)])
    committed = pathlib.Path('heat_liveness.conf.sample').read_text()
    assert generated.read_text() == committed, 'Run `make sample`.'
