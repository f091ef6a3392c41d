"""Limits on nodes: how many may hold a session, per connector, per project and in total. Pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

UNLIMITED = 0
MAX_PROJECT_LIMITS = 4096
"""Projects with a limit of their own: each opening reads them."""


class Scope(StrEnum):
    """What a limit counts over."""

    CONNECTOR = "connector"
    PROJECT = "project"
    TOTAL = "total"


# A scope and the connector or project it is about; the total has an empty one.
Place = tuple[Scope, str]


def places(project_id: str, connector_id: str) -> tuple[Place, Place, Place]:
    """Where a session is counted, in the order in which counter rows are locked."""
    return (Scope.CONNECTOR, connector_id), (Scope.PROJECT, project_id), (Scope.TOTAL, "")


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits in nodes; 0 means unlimited. `projects` are exceptions by project id."""

    per_connector: int = 10_000
    per_project: int = UNLIMITED
    total: int = UNLIMITED
    projects: Mapping[str, int] = field(default_factory=dict)

    def of(self, place: Place) -> int:
        """The limit of one place."""
        scope, key = place
        exception = self.projects.get(key) if scope is Scope.PROJECT else None
        return self.general(scope) if exception is None else exception

    def general(self, scope: Scope) -> int:
        """The limit of a scope where no exception applies."""
        if scope is Scope.CONNECTOR:
            return self.per_connector
        return self.per_project if scope is Scope.PROJECT else self.total


@dataclass(frozen=True, slots=True)
class LimitsChange:
    """What an operator changes; None keeps. A project's 0 removes its exception."""

    per_connector: int | None = None
    per_project: int | None = None
    total: int | None = None
    projects: Mapping[str, int] = field(default_factory=dict)


def full_place(
    limits: Limits, counts: Mapping[Place, int], wanted: Iterable[Place], held: Iterable[Place]
) -> Place | None:
    """The first place that has no room for one more node; None if the open is admitted.

    `held` are the places that already count the node by its live session: those it needs no
    further room in.
    """
    exempt = frozenset(held)
    for place in wanted:
        limit = limits.of(place)
        if limit != UNLIMITED and place not in exempt and counts.get(place, 0) >= limit:
            return place
    return None


def changed(limits: Limits, change: LimitsChange) -> Limits:
    """The limits after a change."""
    projects = {**limits.projects, **change.projects}
    return replace(
        limits,
        per_connector=limits.per_connector if change.per_connector is None else change.per_connector,
        per_project=limits.per_project if change.per_project is None else change.per_project,
        total=limits.total if change.total is None else change.total,
        projects={key: limit for key, limit in projects.items() if limit != UNLIMITED},
    )
