"""Postgres and NATS, run by us for a single machine. Nothing else in the project knows that they can be embedded."""
