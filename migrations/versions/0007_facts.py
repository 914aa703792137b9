"""Store what the program read from the event log: holdout draws, selections, agreement, matched arms, endings.

Revision ID: 0007
Revises: 0006
"""

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

ROW_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
ENDINGS = (
    "answered",
    "by hand",
    "label budget",
    "round limit",
    "pool exhausted",
    "target accuracy",
    "learning curve flat",
    "predictions stable",
    "nothing to ask",
)

event = sa.table(
    "event",
    sa.column("id", ROW_ID),
    sa.column("kind", sa.String()),
    sa.column("round_number", sa.Integer()),
    sa.column("data", sa.JSON()),
)
image = sa.table("image", sa.column("id", ROW_ID), sa.column("split", sa.String()))
round_ = sa.table(
    "round",
    sa.column("id", sa.Integer()),
    sa.column("number", sa.Integer()),
    sa.column("closed_because", sa.Text()),
    sa.column("ending", sa.String()),
    sa.column("matched", sa.JSON(none_as_null=True)),
)


def upgrade() -> None:
    # SQLite adds columns that may be null in place; copying the table would have to spell out its partial index.
    # Alembic cannot add a column together with its check; both databases understand this statement.
    values = ", ".join(f"'{ending}'" for ending in ENDINGS)
    op.execute(
        f"ALTER TABLE round ADD COLUMN ending VARCHAR(32) CONSTRAINT ck_round_ending CHECK (ending IN ({values}))"
    )
    with op.batch_alter_table("round", recreate="never") as table:
        table.add_column(sa.Column("matched", sa.JSON(), nullable=True))
    draws, drawn = _add_holdout_tables()
    selections = _add_selection()
    agreements = _add_agreement()
    ids = {number: round_id for round_id, number in op.get_bind().execute(sa.select(round_.c.id, round_.c.number))}
    _carry_holdout(ids, draws, drawn)
    _carry_selections(ids, selections)
    _carry_agreement(ids, agreements)
    _carry_matched(ids)
    _carry_endings()


def downgrade() -> None:
    for name in ("agreement", "selection", "holdout_image", "holdout_draw"):
        op.drop_table(name)
    with op.batch_alter_table("round", recreate="never") as table:
        table.drop_column("matched")
    op.execute("ALTER TABLE round DROP COLUMN ending")


def _add_holdout_tables() -> tuple[sa.Table, sa.Table]:
    draws = op.create_table(
        "holdout_draw",
        sa.Column("round_id", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("is_growth", sa.Boolean(), nullable=False),
        sa.Column("n_images", sa.Integer(), nullable=False),
        sa.Column("n_groups", sa.Integer(), nullable=False),
        sa.CheckConstraint("n_images BETWEEN 1 AND n_groups", name="ck_holdout_draw_n_images"),
        sa.ForeignKeyConstraint(["round_id"], ["round.id"], name="fk_holdout_draw_round_id"),
        sa.PrimaryKeyConstraint("round_id", name="pk_holdout_draw"),
    )
    drawn = op.create_table(
        "holdout_image",
        sa.Column("image_id", ROW_ID, nullable=False, autoincrement=False),
        sa.Column("round_id", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["image_id"], ["image.id"], name="fk_holdout_image_image_id"),
        sa.ForeignKeyConstraint(["round_id"], ["holdout_draw.round_id"], name="fk_holdout_image_round_id"),
        sa.PrimaryKeyConstraint("image_id", name="pk_holdout_image"),
    )
    op.create_index("ix_holdout_image_round_id", "holdout_image", ["round_id"])
    return draws, drawn


def _add_selection() -> sa.Table:
    return op.create_table(
        "selection",
        sa.Column("round_id", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("strategy", sa.String(64), nullable=False),
        sa.Column("notes", sa.JSON(), nullable=False),
        sa.Column("n", sa.Integer(), nullable=True),
        sa.Column("settings", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("library_versions", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("path", sa.Text(), nullable=True),
        sa.Column("sha256", sa.String(64), nullable=True),
        sa.CheckConstraint("(path IS NULL) = (sha256 IS NULL)", name="ck_selection_file"),
        sa.ForeignKeyConstraint(["round_id"], ["round.id"], name="fk_selection_round_id"),
        sa.PrimaryKeyConstraint("round_id", name="pk_selection"),
    )


def _add_agreement() -> sa.Table:
    return op.create_table(
        "agreement",
        sa.Column("round_id", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("before_id", sa.Integer(), nullable=False),
        sa.Column("share", sa.Float(), nullable=False),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.CheckConstraint("share >= 0 AND share <= 1", name="ck_agreement_share"),
        sa.ForeignKeyConstraint(["round_id"], ["round.id"], name="fk_agreement_round_id"),
        sa.ForeignKeyConstraint(["before_id"], ["round.id"], name="fk_agreement_before_id"),
        sa.PrimaryKeyConstraint("round_id", name="pk_agreement"),
    )


def _last_events(kind: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (round number, data) of each round's newest event of a kind, the oldest round first."""
    query = sa.select(event.c.round_number, event.c.data).where(event.c.kind == kind).order_by(event.c.id)
    found = {number: data for number, data in op.get_bind().execute(query) if number is not None}
    yield from sorted(found.items())


def _newest(kind: str) -> int:
    return op.get_bind().scalar(sa.select(sa.func.max(event.c.id)).where(event.c.kind == kind)) or 0


def _carry_holdout(ids: dict[int, int], draws: sa.Table, drawn: sa.Table) -> None:
    first = dict(_last_events("holdout drawn"))
    grown = {number: data for number, data in _last_events("holdout grown") if number in ids}
    later = {image_id: number for number, data in grown.items() for image_id in data["images"]}
    # The log has the number of images of the first draw, but not the images.
    held = op.get_bind().scalars(sa.select(image.c.id).where(image.c.split == "holdout")).all()
    rows = [
        {"round_id": ids[number], "is_growth": True, "n_images": len(data["images"]), "n_groups": data["groups"]}
        for number, data in grown.items()
    ]
    images = [{"image_id": image_id, "round_id": ids[number]} for image_id, number in later.items()]
    # The newest draw counts: it replaced an earlier one. A test set replaces every draw before it.
    for number in [number for number in first if number in ids and number not in grown][-1:]:
        if _newest("test set added") > _newest("holdout drawn"):
            break
        data = first[number]
        rows.append(
            {"round_id": ids[number], "is_growth": False, "n_images": data["images"], "n_groups": data["groups"]}
        )
        images += [{"image_id": image_id, "round_id": ids[number]} for image_id in held if image_id not in later]
    op.bulk_insert(draws, rows)
    op.bulk_insert(drawn, images)


def _carry_selections(ids: dict[int, int], selections: sa.Table) -> None:
    rows = [
        {
            "round_id": ids[number],
            "strategy": data["strategy"],
            "notes": data.get("notes", []),
            "n": data.get("given", {}).get("n"),
            "settings": data.get("settings"),
            "library_versions": data.get("versions"),
        }
        for number, data in _last_events("selected")
        if number in ids
    ]
    op.bulk_insert(selections, rows)


def _carry_agreement(ids: dict[int, int], agreements: sa.Table) -> None:
    found = [(number, data["agreement"]) for number, data in _last_events("scored") if data.get("agreement")]
    rows = [
        {"round_id": ids[number], "before_id": ids[same["before"]], "share": same["share"], "n": same["n"]}
        for number, same in found
        if number in ids and same["before"] in ids
    ]
    op.bulk_insert(agreements, rows)


def _carry_matched(ids: dict[int, int]) -> None:
    for number, data in _last_events("matched arms"):
        if number in ids:
            op.execute(round_.update().where(round_.c.id == ids[number]).values(matched=data))


def _carry_endings() -> None:
    closed = op.get_bind().execute(
        sa.select(round_.c.id, round_.c.closed_because).where(round_.c.closed_because.is_not(None))
    )
    for round_id, because in closed.all():
        op.execute(round_.update().where(round_.c.id == round_id).values(ending=_ending(because)))


def _ending(because: str) -> str:
    """Return the reason that a sentence stands for."""
    reason = because.removeprefix("stopped: ")
    if reason != because:
        return next((ending for ending in ENDINGS if reason.startswith(ending)), "nothing to ask")
    return "answered" if " images answered" in because else "by hand"
