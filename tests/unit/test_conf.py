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

"""Options that are not safe together are refused, with values that would do."""

import dataclasses
import logging
import pathlib
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oslo_config import cfg

from heat_liveness import conf, errors
from tests.unit import fakes


def load(directory: pathlib.Path, *lines: str) -> conf.Settings:
    file = directory / 'liveness.conf'
    file.write_text('[liveness]\n' + '\n'.join(lines))
    config = cfg.ConfigOpts()
    conf.load(config, ['--config-file', str(file)], 'test', '1')
    return conf.Settings.from_conf(config)


def proposals(sentences: list[str]) -> dict[str, float]:
    found = [re.search(r'set (\w+) to ([\d.e+]+) or (more|less)\.$', each) for each in sentences]
    assert all(found), sentences
    return {match[1]: float(match[2]) for match in found if match}


def test_the_defaults_are_safe() -> None:
    assert conf.Settings().violations() == []
    assert fakes.QUICK.violations() == []


def test_the_defaults_of_the_options_are_those_of_the_settings(tmp_path: pathlib.Path) -> None:
    assert load(tmp_path) == conf.Settings()


def test_the_times_of_the_default_protocol() -> None:
    settings = conf.Settings()
    assert settings.candidate_age == pytest.approx(6.0)
    assert settings.window == pytest.approx(24.0)
    assert settings.settle == pytest.approx(9.9)
    assert settings.shortest_fence == pytest.approx(20.0)
    assert settings.declaration_bound == pytest.approx(37.0)


def test_a_short_interval_has_a_candidate_age_that_jitter_cannot_reach() -> None:
    settings = conf.Settings(report_interval=.3)
    assert settings.candidate_age == pytest.approx(1.33)


@pytest.mark.parametrize('name', [
    option.name for option in conf.OPTIONS if isinstance(option, cfg.FloatOpt)])
def test_no_number_is_no_time(name: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / 'c.conf').write_text(f'[liveness]\n{name} = nan\n')
    config = cfg.ConfigOpts()
    conf.load(config, ['--config-file', str(tmp_path / 'c.conf')], 'test', '1')
    with pytest.raises(errors.ConfigError, match=f'{name} in .liveness. is nan: give a number'):
        conf.Settings.from_conf(config)
    assert conf.reloaded(config, conf.Settings()) == conf.Settings()


@pytest.mark.parametrize('name', ['host', 'binary', 'topic'])
@pytest.mark.parametrize('value', ['', 'x' * 256], ids=['empty', 'long'])
def test_a_name_that_no_row_could_hold_is_refused(
        name: str, value: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / 'c.conf').write_text(f'[liveness]\n{name} = {value}\n')
    config = cfg.ConfigOpts()
    conf.load(config, ['--config-file', str(tmp_path / 'c.conf')], 'test', '1')
    with pytest.raises(errors.ConfigError, match=name):
        conf.Settings.from_conf(config)


def test_the_kernel_waits_for_an_interpreter_that_stalls_and_the_others_wait_with_it() -> None:
    """I6, I11: a busy engine that holds is neither ended nor called dead before it holds."""
    busy = conf.Settings(stall_time=9.8, fence_time=29, service_down_time=48)
    assert busy.violations() == []
    assert (busy.kernel_timer_lag, busy.asked_fence_time) == (9.8, pytest.approx(37.8))
    assert any('before it holds' in each
               for each in dataclasses.replace(busy, service_down_time=45).violations())
    calm = conf.Settings(stall_time=0)
    assert (calm.kernel_timer_lag, calm.asked_fence_time) == (1.0, 20.0)


@pytest.mark.parametrize('fence_time', [.2, 20.0, 3600.0])
def test_nobody_is_declared_before_it_holds_whatever_the_clocks_rates(fence_time: float) -> None:
    """I6, the safety inequality: W (1 - rho) > (F + k)(1 + rho) + 1."""
    window = conf.window_for(fence_time)
    assert window * (1 - .001) >= (fence_time + 1) * (1 + .001) + 1 - 1e-9
    settings = conf.Settings(fence_time=fence_time)
    settings = dataclasses.replace(settings, service_down_time=settings.candidate_age + window)
    assert any('before it holds' in each for each in settings.violations())


@pytest.mark.parametrize(('change', 'sentence'), [
    ({'fence_time': 19.9}, r'^fence_time is 19\.9 s, .*: set fence_time to 20 or more\.$'),
    ({'fence_time': 15.0},
     r'^fence_time is 15 s, shorter .* \(20\.00 s, .*: set fence_time to 20 or more\.$'),
    ({'service_down_time': 28.0},
     r'^service_down_time is 28 s, .* before it holds .*: set service_down_time to 28\.1 or'),
    ({'scan_interval': 8.0}, r'^scan_interval is 8 s, .*: set scan_interval to 7\.5 or less\.$'),
    ({'purge_after': 60.0}, r'^purge_after is 60 s, .*: set purge_after to 350 or more\.$'),
])
def test_each_broken_inequality_is_a_sentence_with_a_value(
        change: dict[str, float], sentence: str) -> None:
    (found,) = conf.Settings(**change).violations()  # type: ignore[arg-type]
    assert re.match(sentence, found), found


def test_an_outage_that_no_observer_can_notice_declares_nobody() -> None:
    """I11: between two beats of its own, or within one read, and until all get through again."""
    beats = conf.Settings(report_interval=20, fence_time=38, service_down_time=77)
    assert beats.longest_lull == pytest.approx((22 + .5 + 9) + (22 + 4))
    assert beats.violations() == []
    reads = conf.Settings(
        read_timeout=10, database_stall_time=0, fence_time=28, service_down_time=50.8)
    assert reads.longest_lull == pytest.approx((4.4 + .5 + 23) + 23)
    (found,) = reads.violations()
    assert re.search('nobody notices: set service_down_time to 50.9 or more', found), found
    assert dataclasses.replace(reads, service_down_time=50.9).violations() == []


def test_a_value_that_just_keeps_its_inequality_is_taken() -> None:
    assert conf.Settings(scan_interval=7.5).violations() == []
    assert conf.Settings(purge_after=350.0).violations() == []
    assert conf.Settings(service_down_time=28.1).violations() == []
    # Nothing is proposed that is refused: sums of floats may miss by a little.
    shortest = conf.Settings().shortest_fence
    assert conf.Settings(fence_time=shortest - 1e-6).violations() == []
    assert (conf._up(20 + 3e-8), conf._up(20 + 3e-7)) == (20, 20.1)


@settings(deadline=None)
@given(st.fixed_dictionaries({
    'report_interval': st.floats(.05, 300),
    'fence_time': st.floats(.2, 3600),
    'service_down_time': st.floats(1, 7200),
    'scan_interval': st.floats(.05, 300),
    'beat_retry': st.floats(.01, 60),
    'connect_timeout': st.floats(.1, 60),
    'read_timeout': st.floats(.1, 60),
    'database_stall_time': st.floats(0, 60),
    'stall_time': st.floats(0, 60),
    'purge_after': st.floats(60, 366 * 86400),
}))
def test_what_is_proposed_is_accepted(options: dict[str, float]) -> None:
    asked = conf.Settings(**options)  # type: ignore[arg-type]
    proposed = proposals(asked.violations())
    better = dataclasses.replace(asked, **proposed)  # type: ignore[arg-type]
    assert better.violations() == []
    ranges = {option.name: option.type for option in conf.OPTIONS}
    for name, value in proposed.items():
        assert ranges[name].min <= value <= ranges[name].max


def test_values_are_read_from_a_file(tmp_path: pathlib.Path) -> None:
    settings = load(tmp_path, 'host = elsewhere', 'max_tasks = 3', 'breaker_delay = 5')
    assert (settings.host, settings.max_tasks, settings.breaker_delay) == ('elsewhere', 3, 5.0)


@pytest.mark.parametrize(('line', 'text'), [
    ('report_interval = often', 'report_interval'),
    ('report_interval = 0', 'report_interval'),
    ('fence_time = -1', 'fence_time'),
    ('max_takeovers = 0', 'max_takeovers'),
    ('max_tasks = 1.5', 'max_tasks'),
])
def test_a_value_out_of_range_or_of_the_wrong_type_is_a_sentence(
        tmp_path: pathlib.Path, line: str, text: str) -> None:
    with pytest.raises(errors.ConfigError,
                       match=rf'(?s)An option of \[liveness\] cannot be used: .*{text}'):
        load(tmp_path, line)


def test_an_unsafe_set_in_a_file_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(errors.ConfigError, match=r'not safe together\. service_down_time is 21 s'):
        load(tmp_path, 'service_down_time = 21')


def test_without_a_named_file_those_of_heat_are_read(
        tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('HOME', str(tmp_path))
    for place, line in [('heat.conf', 'max_tasks = 7'), ('heat-engine.conf', 'max_takeovers = 9'),
                        ('heat.conf.d/a.conf', 'topic = found'),
                        ('heat-engine.conf.d/a.conf', 'binary = found')]:
        file = tmp_path / '.heat' / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f'[liveness]\n{line}\n[database]\nconnection = sqlite://\n')
    config = cfg.ConfigOpts()
    conf.load(config, [], 'test', '1')
    found = conf.Settings.from_conf(config)
    assert (found.max_tasks, found.max_takeovers) == (7, 9)
    assert (found.topic, found.binary) == ('found', 'found')
    assert config.database.connection == 'sqlite://'
    # Files that options name, as oslo finds them.
    (tmp_path / '.heat' / 'policy.yaml').touch()
    elsewhere = tmp_path / 'elsewhere.conf'
    elsewhere.touch()
    config = cfg.ConfigOpts()
    conf.load(config, ['--config-file', str(elsewhere)], 'test', '1')
    assert config.find_file('policy.yaml') == str(tmp_path / '.heat' / 'policy.yaml')


def test_the_program_and_its_version_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    for argument, text in (('--version', '1.2.3'), ('--help', 'usage: the-program ')):
        with pytest.raises(SystemExit):
            conf.load(cfg.ConfigOpts(), [argument], 'the-program', '1.2.3')
        assert text in capsys.readouterr().out


@pytest.mark.parametrize('arguments', [
    ['--config-file', '/nowhere/at.all'], ['--config-dir', '/nowhere/at.all']])
def test_a_configuration_that_cannot_be_read_is_a_sentence(arguments: list[str]) -> None:
    with pytest.raises(errors.ConfigError, match=r'^The configuration cannot be read: .*nowhere'):
        conf.load(cfg.ConfigOpts(), arguments, 'test', '1')


def test_a_file_that_is_no_configuration_is_a_sentence(tmp_path: pathlib.Path) -> None:
    with pytest.raises(errors.ConfigError, match=r'^The configuration cannot be read: '):
        load(tmp_path, 'this is not an option')


def test_a_reload_of_unusable_options_keeps_those_of_before(
        tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    good = load(tmp_path, 'max_tasks = 5')
    file = tmp_path / 'liveness.conf'
    config = cfg.ConfigOpts()
    conf.load(config, ['--config-file', str(file)], 'test', '1')
    file.write_text('[liveness]\nmax_tasks = 6\n')
    config.mutate_config_files()
    assert conf.reloaded(config, good).max_tasks == 6
    file.write_text('[liveness]\nfence_time = 1\n')
    config.mutate_config_files()
    assert conf.reloaded(config, good) == good
    (record,) = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert 'fence_time is 1 s' in record.getMessage()


def test_the_generator_of_the_sample_finds_every_option() -> None:
    ((group, options),) = conf.list_opts()
    assert group == 'liveness'
    assert {field.name for field in dataclasses.fields(conf.Settings)} == (
        {option.name for option in options} - {'enabled'})


@pytest.mark.parametrize('asked', [float('inf'), float('nan'), 1e308])
def test_who_asks_for_more_than_the_options_allow_is_watched_for_the_longest_they_allow(
        asked: float) -> None:
    assert conf.window_for(asked) == conf.window_for(conf.LONGEST_FENCE_SECONDS) < 4000
    longest = conf.Settings(fence_time=3600, stall_time=60)
    assert longest.asked_fence_time <= conf.LONGEST_FENCE_SECONDS
