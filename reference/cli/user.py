"""`manual-backprop check mymodule:my_custom_vjp`: find a user's own function by name and check it."""

from collections.abc import Sequence
from typing import Any

from reference.cli.files import BadInput
from reference.cli.targets import current_folder_first, named, told
from reference.report import Report


def run(
    target: str,
    args: str,
    *,
    gradient: str = "",
    raw: str = "",
    argnums: int | Sequence[int] | None = None,
    dtype: str | None = None,
    seed: int = 0,
    witnesses: str | Sequence[str] = (),
    approximation: float = 0.0,
    thorough: bool = False,
) -> Report:
    """Check one of the user's functions or objectives, imported with the current folder first on the path.

    Args:
        target: `module:name` of a jax.custom_vjp, a jax.custom_jvp or a `manual_backprop.Objective`; with `gradient`,
            of any function. The name may have dots.
        args: `module:name` of a tuple, the arguments, or of a function without arguments that returns one.
        gradient: `module:name` of the gradient written by hand for `target`.
        raw: `module:name` of the plain function, if the one inside the rule cannot be differentiated.
        argnums: which arguments to differentiate by; None means the first for a gradient, all for a rule.
        dtype: to round float arguments to; None leaves them as they are.
        seed: of all random numbers.
        witnesses: for a gradient, as for `check_gradient`.
        approximation: how far a derivative may be off by intent, relative to the largest entry.
        thorough: whether to check at other arguments too, and the second derivative.

    Raises:
        BadInput: a module or name that does not exist, a module that raises, arguments that are no tuple, a target
            that cannot be checked, options that do not belong to it, or a function that raises.
    """
    if gradient and raw:
        raise BadInput("--raw is the plain function of a rule; with --gradient, TARGET itself is plain: leave one out")
    if witnesses and not gradient:
        raise BadInput(
            "--witnesses differentiate a plain function, whose gradient --gradient names: add it, or leave them"
        )
    with current_folder_first():
        function = _callable(target, "the target")
        given = _arguments(args)
        import jax

        import manual_backprop as mb
        from reference.checks.faults import CallFailed
        from reference.checks.gradient import check_gradient
        from reference.checks.rule import check_jvp, check_vjp

        options: dict[str, Any] = {"dtype": dtype, "seed": seed}
        try:
            if isinstance(function, mb.Objective) and not gradient:
                if raw or argnums is not None or approximation or thorough:
                    told = "checked in all of its arguments: no --raw, no --argnums, no --approximation, no --thorough"
                    raise BadInput(f"{target} is an Objective, {told}")
                return _proven(function, args, given, **options)
            options |= {"approximation": approximation, "thorough": thorough}
            if gradient:
                by_hand = _callable(gradient, "the gradient")
                numbers = 0 if argnums is None else argnums
                return check_gradient(function, by_hand, *given, argnums=numbers, witnesses=witnesses, **options)
            _require_rule(function, target, raw)
            options |= {"argnums": argnums, "raw": _callable(raw, "the plain function") if raw else None}
            check = check_jvp if _holds(function, jax.custom_jvp) else check_vjp
            return check(function, *given, **options)
        except (TypeError, ValueError, CallFailed) as error:
            raise BadInput(f"{target}: {error}") from error


def _proven(objective: Any, args: str, given: tuple[Any, ...], dtype: str | None, seed: int) -> Report:
    from reference.checks.step import check
    from reference.xla import quick

    if len(given) != 3:
        raise BadInput(f"the arguments {args} of an Objective must be (params, x, y), got a tuple of {len(given)}")
    return check(objective, *given, dtype=dtype or "float64", seed=seed, compiler_options=quick())


def _require_rule(function: Any, target: str, raw: str) -> None:
    """Refuse a plain function, and name the command-line options to use."""
    import jax

    if raw or _holds(function, jax.custom_vjp) or _holds(function, jax.custom_jvp):
        return
    module = target.partition(":")[0]
    raise BadInput(
        f"{target} is a plain function, neither a jax.custom_vjp nor a jax.custom_jvp: name the gradient that you"
        f" wrote for it, --gradient {module}:its_gradient, or where a rule is hidden inside it, the same"
        f" function without one, --raw {module}:without_rule"
    )


def _holds(function: Any, kind: type) -> bool:
    """Whether a function, or a function that it wraps, is of this kind."""
    while not isinstance(function, kind) and hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return isinstance(function, kind)


def _callable(name: str, role: str) -> Any:
    found = named(name)
    if not callable(found):
        hint = "; of a network, check an objective: mb.Objective(net, loss)" if hasattr(found, "out_shape") else ""
        raise BadInput(f"{role} {name} is not callable: it is {type(found).__name__}{hint}")
    return found


def _arguments(name: str) -> tuple[Any, ...]:
    found = named(name)
    if callable(found) and not isinstance(found, tuple):
        try:
            found = found()
        except Exception as error:
            raise BadInput(f"the function of arguments {name} raised {told(error)}; it is called with none") from error
    if not isinstance(found, tuple):
        raise BadInput(
            f"the arguments {name} must be a tuple, or a function that returns one, got {type(found).__name__};"
            " a single argument is written (x,)"
        )
    return found
