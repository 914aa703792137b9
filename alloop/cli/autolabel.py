"""`alloop autolabel`: automatic labels with a promise, their audit, and their withdrawal."""

import dataclasses
from typing import TYPE_CHECKING, Any

import click

from alloop.cli._options import Session, common_options
from alloop.cli.steps import device_option

if TYPE_CHECKING:
    from alloop.loop.automatic.promise import Chain, Labeled, Promise

_SHARE = click.FloatRange(min=0, max=1, min_open=True, max_open=True)


@click.command()
@click.option("--max-error", type=_SHARE, help="Largest share of errors among automatic labels, such as 0.01.")
@click.option(
    "--confidence",
    type=_SHARE,
    default=0.95,
    show_default=True,
    help="Confidence of all looks at the holdout together.",
)
@click.option("--classwise", is_flag=True, help="Keep the promise for each predicted class, not only for all together.")
@click.option("--dry-run", is_flag=True, help="Look and report, but label nothing. Counts as a look.")
@click.option("--audit", type=click.IntRange(min=1), metavar="N", help="Ask people about N random automatic labels.")
@click.option("--undo", is_flag=True, help="Withdraw all automatic labels.")
@device_option
@common_options
def autolabel(
    session: Session,
    max_error: float | None,
    confidence: float,
    classwise: bool,
    dry_run: bool,
    audit: int | None,
    undo: bool,
    device: str | None,
) -> None:
    """Label the images that the model labels surely enough.

    An unlabeled image gets an automatic label if the holdout shows, with the given confidence, that at most the given
    share of such labels is wrong. Other images are left for people. A person's label replaces an automatic one.

    Every look at the holdout labels spends a part of 1 - confidence: the k-th look 1 / (k (k + 1)) of it. Looking again
    without new labels or a new model costs nothing.
    """
    if sum((max_error is not None, audit is not None, undo)) != 1:
        raise click.UsageError("Give one of --max-error, --audit and --undo, such as --max-error 0.01.")
    if (dry_run or classwise) and max_error is None:
        raise click.UsageError("--dry-run and --classwise belong to --max-error.")
    if undo:
        _undo(session)
    elif audit is not None:
        _audit(session, audit)
    else:
        from alloop.loop.automatic.promise import Promise

        assert max_error is not None
        _label(session, Promise(max_error, confidence, classwise), dry_run=dry_run, device=device)


def _label(session: Session, promise: "Promise", *, dry_run: bool, device: str | None) -> None:
    from alloop.loop.automatic.promise import label_automatically
    from alloop.loop.workbench import open_workbench

    with open_workbench(session.tools()) as bench:
        found = label_automatically(bench, promise, is_dry_run=dry_run, device=device)
    chains = [{**dataclasses.asdict(chain), "probability": chain.probability} for chain in found.chains]
    data: dict[str, Any] = {**dataclasses.asdict(found), "chains": chains}
    session.show(data, "\n".join(_words(found)))


def _audit(session: Session, n: int) -> None:
    from alloop.loop.asking import people
    from alloop.loop.automatic.audit_draw import draw_audit
    from alloop.loop.workbench import open_workbench

    with open_workbench(session.tools()) as bench:
        connection = people.connect_people(bench)  # before anything is drawn: the server may be down
        drawn = draw_audit(bench, n)
        people.push(bench, drawn.round_number, connection)
    session.show(
        dataclasses.asdict(drawn),
        f"People are asked about {drawn.n} of {drawn.of} different images with an automatic label, without seeing it. "
        "`alloop run` or `alloop pull` fetches the answers; `alloop status` then shows the errors.",
    )


def _undo(session: Session) -> None:
    from alloop.loop.automatic.promise import undo
    from alloop.loop.workbench import open_workbench

    with open_workbench(session.tools()) as bench:
        n = undo(bench)
    session.show({"withdrawn": n}, f"{n} automatic labels withdrawn.")


def _words(found: "Labeled") -> list[str]:
    promise = found.promise
    share, surely = f"{100 * promise.max_error:g} %", f"{100 * promise.confidence:g} %"
    again = "" if found.is_new else " again, which costs nothing: the labels, the model and the promise are the same"
    lines = [f"Look {found.look}{again}: {found.model} on {found.n_holdout} holdout images."]
    lines += [f"{chain.class_name or 'All classes'}: {_chain(chain)}" for chain in found.chains]
    if not found.n_accepted:
        lines.append(
            f"Nothing was labeled: no threshold keeps errors at {share} with {surely} confidence."
            if not any(chain.is_accepted for chain in found.chains)
            else "Nothing was labeled: no unlabeled image is above the threshold."
        )
        if found.n_labeled:
            lines.append(f"{found.n_labeled} automatic labels of an earlier look stay, and so does its promise.")
        if any(chain.missing for chain in found.chains):
            lines.append("[evaluation] holdout_growth adds holdout images in every round.")
    else:
        would = "would get" if found.is_dry_run else "got"
        lines.append(
            f"{found.n_accepted} of {found.n_rest} images {would} an automatic label. With {surely} confidence, at "
            f"most {share} of these labels are wrong{' in each class' if promise.is_classwise else ''}."
        )
    return lines + list(found.notes)


def _chain(chain: "Chain") -> str:
    if chain.is_accepted:
        above = "all images pass" if chain.above is None else f"probability above {chain.probability:.4g}"
        return f"{above}; the holdout has {chain.errors} errors among {chain.n} such images."
    tested = (
        f"{chain.errors} errors among the {chain.n} surest holdout images are too many"
        if chain.n
        else "too few holdout images"
    )
    if chain.missing is None:
        return f"{tested}; more holdout labels alone would not help. A better model may."
    return f"{tested}; about {chain.missing} more holdout labels could make a threshold pass."
