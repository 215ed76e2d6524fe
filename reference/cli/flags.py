"""Refuse flags that do not go together, so that none is ignored without a word."""

from argparse import Namespace
from collections.abc import Mapping, Sequence

from reference.cli.files import BadInput

NAMES = {"imports": "--import"}  # of arguments that are not called like their flag


def asked(arguments: Namespace, names: Sequence[str]) -> str:
    """The flags among these that were given, with commas between; their defaults are None, False or []."""
    values = {name: getattr(arguments, name) for name in names}
    given = [name for name, value in values.items() if not (value is None or value is False or value == [])]
    return ", ".join(NAMES.get(name, f"--{name.replace('_', '-')}") for name in given)


def fill(arguments: Namespace, defaults: Mapping[str, object]) -> None:
    """Give the flags that were not given, which are None, their defaults."""
    for name, value in defaults.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)


def refuse(arguments: Namespace, names: Sequence[str], why: str) -> None:
    """Refuse each of these flags.

    Raises:
        BadInput: one or more of them were given; the text names these and goes on with `why`.
    """
    given = asked(arguments, names)
    if given:
        raise BadInput(f"{given} {why}")
