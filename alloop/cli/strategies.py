"""`alloop strategies`: ways to choose the images to ask about."""

import click

from alloop.cli._options import Session, common_options


@click.command()
@common_options
def strategies(session: Session) -> None:
    """List the query strategies.

    Shows what each strategy does, what it needs, and whether this workspace's model can provide that. Use a name in
    `[acquisition] strategy` or in `alloop select --strategy`.
    """
    from alloop.composition import ALIASES, STRATEGIES, STRATEGY_GROUP, check_strategy, own_strategies, strategy_name
    from alloop.config.load import FILE_NAME
    from alloop.config.schema import ModelConfig

    has_workspace = (session.workspace / FILE_NAME).exists()
    config = session.project(check_schema=False).config if has_workspace else None
    n_members = (ModelConfig() if config is None else config.model).n_members
    chosen = None if config is None else strategy_name(config.acquisition.strategy)
    listed = []
    for name, rule in STRATEGIES.items():
        reason = ""
        try:
            check_strategy(name, n_members=n_members)
        except ValueError as error:
            reason = str(error)
        listed.append(
            {
                "name": name,
                "summary": rule.summary,
                "needs": sorted(rule.needs),
                "can_be_perturbed": rule.is_score,
                "aliases": sorted(alias for alias, known in ALIASES.items() if known == name),
                "possible": not reason,
                "reason": reason,
                "is_set": name == chosen,
            }
        )
    own = [name for name in own_strategies() if name not in STRATEGIES]
    lines = [_line(row) for row in listed]
    lines += [f"{name:<20} of another package (entry point {STRATEGY_GROUP})" for name in own]
    session.show([*listed, *({"name": name, "of_another_package": True} for name in own)], "\n".join(lines))


def _line(row: "dict[str, object]") -> str:
    needs = row["needs"]
    seen = f"; needs {', '.join(needs)}" if isinstance(needs, list) and needs else ""
    also = row["aliases"]
    names = f" (also: {', '.join(also)})" if isinstance(also, list) and also else ""
    cannot = "" if row["possible"] else "  (not with this model)"
    mark = "  ← set" if row["is_set"] else ""
    return f"{row['name']:<20} {row['summary']}{seen}{names}{cannot}{mark}"
