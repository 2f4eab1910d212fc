"""`orrery proxy`, from its command line to its end.

flags.py    the original's command line
run.py      starts what the proxy needs, keeps it running, ends it
early.py    answers until there is a proxy
backbone.py the embedded database and broker, which replicas on one data directory share
"""
