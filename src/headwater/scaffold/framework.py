"""Tables that a framework keeps for itself: nobody outside the application has a use for them."""

from __future__ import annotations

import fnmatch

_TABLES: tuple[tuple[str, str], ...] = (
    ("django_migrations", "Django's list of migrations"),
    ("django_session", "Django's sessions: they are secrets"),
    ("django_content_type", "Django's list of models"),
    ("django_admin_log", "the log of Django's admin"),
    ("django_site", "Django's sites"),
    ("django_flatpage*", "Django's flat pages"),
    ("django_redirect", "Django's redirects"),
    ("django_cache*", "a cache"),
    ("django_celery_*", "Celery's bookkeeping"),
    ("django_q_*", "a task queue's bookkeeping"),
    ("django_apscheduler_*", "a scheduler's bookkeeping"),
    ("auth_permission", "Django's permissions, which migrations make"),
    ("auth_group_permissions", "Django's permissions"),
    ("auth_user_user_permissions", "Django's permissions"),
    ("authtoken_token", "tokens: they are secrets"),
    ("oauth2_provider_*", "OAuth tokens: they are secrets"),
    ("social_auth_*", "tokens of social log-ins: they are secrets"),
    ("celery_*", "Celery's bookkeeping"),
    ("axes_*", "the log of attempted log-ins"),
    ("silk_*", "profiling"),
    ("south_migrationhistory", "South's list of migrations"),
    ("waffle_*", "feature flags of waffle"),
    ("alembic_version", "Alembic's version"),
    ("schema_migrations", "a list of migrations"),
    ("ar_internal_metadata", "Rails' bookkeeping"),
    ("active_storage_*", "Rails' file storage"),
    ("flyway_schema_history", "Flyway's list of migrations"),
    ("databasechangelog*", "Liquibase's list of migrations"),
    ("knex_migrations*", "Knex's list of migrations"),
    ("_prisma_migrations", "Prisma's list of migrations"),
    ("__efmigrationshistory", "Entity Framework's list of migrations"),
    ("spatial_ref_sys", "the reference systems of PostGIS and SpatiaLite"),
    ("geometry_columns", "bookkeeping of PostGIS and SpatiaLite"),
    ("sqlite_*", "SQLite's own"),
    ("*_fts_*", "a full-text index"),
    ("headwater_*", "Headwater's own"),
)


def kept_by(table: str) -> str | None:
    """What a table is, if a framework keeps it for itself."""
    return next((what for pattern, what in _TABLES if fnmatch.fnmatchcase(table.lower(), pattern)), None)
