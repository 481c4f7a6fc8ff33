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

"""Builds heat-liveness; the top-level ``migrations`` are installed inside the package."""

import pathlib
import re

import setuptools

HERE = pathlib.Path(__file__).parent


def requirements(name: str) -> list[str]:
    """Return the requirement lines of a file beside this one, without comments."""
    lines = (line.partition('#')[0].strip() for line in (HERE / name).read_text().splitlines())
    return [line for line in lines if line]


def version() -> str:
    """Return the version that the package states, without importing the package."""
    source = (HERE / 'heat_liveness' / '__init__.py').read_text()
    found = re.search(r"^__version__ = '([^']+)'$", source, re.MULTILINE)
    if found is None:
        raise SystemExit('heat_liveness/__init__.py states no __version__.')
    return found.group(1)


setuptools.setup(
    name='heat-liveness',
    version=version(),
    description='Finishes the work of dead heat-engines, with nothing but the database',
    license='Apache-2.0',
    classifiers=[
        'Development Status :: 4 - Beta',
        'Environment :: OpenStack',
        'Intended Audience :: System Administrators',
        'Operating System :: POSIX :: Linux',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Programming Language :: Python :: 3.13',
    ],
    python_requires='>=3.11,<3.14',
    packages=[
        *setuptools.find_packages(include=['heat_liveness', 'heat_liveness.*']),
        'heat_liveness.migrations',
        'heat_liveness.migrations.versions',
    ],
    package_dir={
        'heat_liveness.migrations': 'migrations',
        'heat_liveness.migrations.versions': 'migrations/versions',
    },
    package_data={
        'heat_liveness': ['py.typed'],
        'heat_liveness.cmd.demo': ['templates/*.yaml'],
        'heat_liveness.migrations': ['script.py.mako'],
    },
    data_files=[('etc/heat_liveness', ['heat_liveness.conf.sample'])],
    install_requires=requirements('requirements.txt'),
    extras_require={
        'mysql': ['PyMySQL>=1.1.1'],
        'postgresql': ['psycopg>=3.2.9'],
        'demo': ['rich>=14.1.0'],
        'test': requirements('test-requirements.txt'),
        'mutation': requirements('mutation-requirements.txt'),
    },
    entry_points={
        'console_scripts': [
            'heat-liveness-manage = heat_liveness.cmd.manage:main',
            'heat-liveness-agent = heat_liveness.cmd.agent:main',
            'heat-liveness-demo = heat_liveness.cmd.demo:main',
        ],
        'heat.clients': ['liveness = heat_liveness.heat.bridge:LivenessBridge'],
        'heat_liveness.work': [
            'native = heat_liveness.work.native:NativeWork',
            'heat = heat_liveness.heat.standalone:observed_work',
        ],
        'heat_liveness.recover': ['heat = heat_liveness.heat.standalone:recover'],
        'heat_liveness.owners': [
            'native = heat_liveness.db.locks:Locks',
            'heat = heat_liveness.heat.claims:Claims',
        ],
        'oslo.config.opts': ['heat_liveness = heat_liveness.conf:list_opts'],
    },
)
