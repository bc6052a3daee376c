"""What the command line does, one module a noun; `app` puts them together."""

from __future__ import annotations

import typer

from sark_mw.commands import approvals, books, checkup, limits, plugins, reconcile, reference, serving

app = typer.Typer(
    name="sark-mw",
    help="Keep AI and API gateways within budget.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)
app.command("serve")(serving.serve)
# Its options are its own, `--help` included.
app.command("demo", context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})(
    serving.demo
)
app.command("fake-provider")(serving.fake_provider)
app.command("doctor")(checkup.doctor)
app.add_typer(limits.app, name="limits")
app.add_typer(approvals.app, name="approvals")
app.add_typer(plugins.app, name="plugins")
app.command("reconcile")(reconcile.reconcile)
app.command("report")(books.report)
app.command("migrate")(books.migrate)
app.command("flush")(books.flush)
app.command("hash-key")(reference.hash_key)
app.command("config")(reference.config)
app.command("version")(reference.version)
