"""The commands. One file for each; what is heavy is imported inside the functions."""

from __future__ import annotations

import typer

from . import doctor, down, events, migrate, proxy, replay, serve, setup_link, status, up, version

app = typer.Typer(
    name="orrery",
    help="A server for every person or app, without a process that everything waits for.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("up")(up.up)
app.command("standalone", hidden=True)(up.up)
app.command("status")(status.status)
app.command("down")(down.down)
app.command("doctor")(doctor.doctor)
app.command("serve")(serve.serve)
app.command(
    "proxy",
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []},
    add_help_option=False,
)(proxy.proxy)
app.command("migrate")(migrate.migrate)
app.command("replay")(replay.replay)
app.command("setup-link")(setup_link.setup_link)
app.command("version")(version.version)
app.add_typer(events.app, name="events")
