"""Two loss curves as a picture: by hand and by jax.grad, and how far they are apart."""

from io import BytesIO
from typing import Any

import numpy as np

from reference.cli.files import BadInput

FORMS = (".svg", ".png")


def require_engine() -> None:
    """Refuse to begin a run whose picture could not be drawn.

    Raises:
        BadInput: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise BadInput(
            f"--picture needs {error.name}, which is not installed; in the clone of the repository, run"
            ' python -m pip install -e ".[cli]"'
        ) from error


def loss_curves(ours: np.ndarray, theirs: np.ndarray, form: str) -> bytes:
    """The losses above, and below the difference wherever there are both; 0 is drawn at the foot.

    Args:
        ours: loss of every step, by hand.
        theirs: by jax.grad, of as many steps from the first on as there are.
        form: "svg" or "png".
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams["svg.hashsalt"] = "manual-backprop"
        figure = Figure(figsize=(7.6, 5.2), layout="constrained")
        losses, apart = figure.subplots(2, 1, height_ratios=(3, 1))
        losses.plot(np.arange(1, len(ours) + 1), ours, color="#0969da", lw=1.2, label="by hand")
        steps = np.arange(1, len(theirs) + 1)
        losses.plot(steps, theirs, color="#bc4c00", lw=2.5, ls=":", label=f"by jax.grad, {len(theirs)} steps")
        losses.set(ylabel="loss, nats a character", xlabel="step")
        losses.legend(frameon=False)
        foot = np.finfo(np.float32).eps / 2
        apart.semilogy(steps, np.maximum(np.abs(ours[: len(theirs)] - theirs), foot), color="#1a7f37", lw=1.2)
        apart.set(ylabel="difference", xlabel="step")
        for axes in (losses, apart):
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(alpha=0.25)
        file = BytesIO()
        metadata: dict[str, Any] = {"Date": None, "Creator": None} if form == "svg" else {"Software": None}
        figure.savefig(file, format=form, dpi=150, metadata=metadata)
    return file.getvalue()
