"""When there is nothing more to ask: each rule is one plain sentence with its evidence. Pure."""

from alloop.config.schema import LoopConfig


def stop_reason(settings: LoopConfig, *, n_labels: int, n_open: int, n_askable: int, n_rounds: int) -> str | None:
    """The first rule that holds, or None.

    Args:
        settings: `[loop]`.
        n_labels: Labels there are, holdout included.
        n_open: Queries that are not answered yet: labels to come.
        n_askable: Images that could be asked about now.
        n_rounds: Rounds that asked something.
    """
    if settings.label_budget is not None and n_labels + n_open >= settings.label_budget:
        to_come = f", {n_open} being asked" if n_open else ""
        return f"label budget reached: {n_labels} of {settings.label_budget} labels{to_come}"
    if settings.max_rounds is not None and n_rounds >= settings.max_rounds:
        return f"round limit reached: {n_rounds} of {settings.max_rounds} rounds"
    if n_askable == 0:
        return "pool exhausted: every image is labeled, being asked, set aside, or a near copy of one that is"
    return None


def batch_size(settings: LoopConfig, n_labels: int, n_open: int) -> int:
    """How many images to ask about now: the configured number, or what the label budget leaves.

    Queries that are still open count as labels to come.
    """
    if settings.label_budget is None:
        return settings.batch_size
    return max(0, min(settings.batch_size, settings.label_budget - n_labels - n_open))
