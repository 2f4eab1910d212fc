"""Accounts, signing keys, set-up links, throttle: everything that is secret."""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.execute(
        """CREATE TABLE auth.accounts (
             user_id text PRIMARY KEY,
             name text NOT NULL UNIQUE,
             password_hash text NOT NULL,
             changed_at timestamptz NOT NULL DEFAULT now()
           )"""
    )
    op.execute(
        """CREATE TABLE auth.signing_keys (
             kid text PRIMARY KEY,
             public_key text NOT NULL,
             private_key bytea NOT NULL,
             created_at timestamptz NOT NULL DEFAULT now(),
             retired_at timestamptz
           )"""
    )
    op.execute(
        """CREATE TABLE auth.setup_links (
             hash bytea PRIMARY KEY,
             expires_at timestamptz NOT NULL,
             used_at timestamptz
           )"""
    )
    op.execute(
        """CREATE TABLE auth.throttle (
             key bytea PRIMARY KEY,
             failures int NOT NULL,
             blocked_until timestamptz NOT NULL,
             updated_at timestamptz NOT NULL
           )"""
    )
