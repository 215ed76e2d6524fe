"""Directives whose text is asked of the code when the pages are built, so that it is written once.

`command-help` is what `manual-backprop COMMAND --help` says, `activation-rows` the table of activations, and
`autofixture` a pytest fixture, which autodoc takes for no function.
"""

import argparse
import inspect
import os
from importlib import import_module

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class CommandHelp(SphinxDirective):
    """`.. command-help:: check`; without an argument, the help of the command itself."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        """A literal block."""
        from reference.cli import command

        os.environ["COLUMNS"] = "92"
        parser = command._parser()
        if self.arguments:
            (commands,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
            parser = commands.choices[self.arguments[0]]
        text = parser.format_help()
        return [nodes.literal_block(text, text, language="text")]


class ActivationRows(SphinxDirective):
    """A line for each row of `activations.TABLE`."""

    def run(self) -> list[nodes.Node]:
        """A table."""
        from manual_backprop.activations import TABLE

        lines = [".. list-table::", "   :header-rows: 1", ""]
        lines += ["   * - name", "     - slope at its kink", "     - weights drawn by"]
        for row in TABLE.values():
            kinks = ", ".join(f"{slope:.6g} at {z:g}" for z, slope in row.kinks) or "no kink"
            lines += [f"   * - ``{row.name}``", f"     - {kinks}", f"     - {row.initializer}"]
        return self.parse_text_to_nodes("\n".join(lines) + "\n")


class AutoFixture(SphinxDirective):
    """`.. autofixture:: package.module.name`."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Its name and docstring, as of a function without parameters of its own."""
        module, _, name = self.arguments[0].rpartition(".")
        lines = inspect.cleandoc(getattr(import_module(module), name).__doc__ or "").split("\n")
        self.env.app.emit("autodoc-process-docstring", "function", name, None, {}, lines)
        text = [f".. py:function:: {name}", f"   :module: {module}", ""]
        return self.parse_text_to_nodes(StringList([*text, *(f"   {line}" for line in lines)], source=module))


def setup(app: Sphinx) -> dict[str, bool]:
    """Sphinx calls this."""
    app.add_directive("command-help", CommandHelp)
    app.add_directive("activation-rows", ActivationRows)
    app.add_directive("autofixture", AutoFixture)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
