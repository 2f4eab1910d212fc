"""`orrery up`: every part of the platform as a process of its own, kept running.

up.py        the order of things: lock, ports, secrets, backbone, database, services, banner, shutdown
lifetime.py  until a signal
slot.py      one place that a process fills; starts another when it dies
children.py  a process that was started, however it was started
preload.py   starts services by forking a process that has imported everything already
backbone.py  the slots of Postgres and NATS, embedded or external
services.py  the slots of our own services: their environment and their log files
jobs.py      work on the database, done in a process of its own (work.py)
readiness.py asks every process, and then the public port
shutdown.py  the end, in order
logs.py      bounded log files; the coloured live view
"""
