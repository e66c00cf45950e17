"""All faults: importing this module registers them."""

from __future__ import annotations

from . import faults_clients, faults_machine, faults_postgres, faults_redis, faults_standby, faults_workers
from .faults import FAULTS

__all__ = [
    "FAULTS",
    "faults_clients",
    "faults_machine",
    "faults_postgres",
    "faults_redis",
    "faults_standby",
    "faults_workers",
]
