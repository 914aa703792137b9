"""Store automatic labels and the looks at the holdout that allowed them; allow the reason 'audit'.

Revision ID: 0008
Revises: 0007
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

ROW_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
NEW = "reason IN ('acquired', 'random', 'holdout', 'seed', 'relabel', 'audit')"
OLD = "reason IN ('acquired', 'random', 'holdout', 'seed', 'relabel')"
IS_OPEN = "status = 'open'"


def upgrade() -> None:
    _set_reasons(NEW)
    op.create_table(
        "autolabel_look",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("model", sa.String(64), nullable=False),
        sa.Column("model_sha256", sa.String(64), nullable=False),
        sa.Column("holdout_digest", sa.String(64), nullable=False),
        sa.Column("max_error", sa.Float(), nullable=False),
        sa.Column("confidence", sa.Float(), nullable=False),
        sa.Column("is_classwise", sa.Boolean(), nullable=False),
        sa.Column("n_holdout", sa.Integer(), nullable=False),
        sa.Column("outcome", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.CheckConstraint("max_error > 0 AND max_error < 1", name="ck_autolabel_look_max_error"),
        sa.CheckConstraint("confidence > 0 AND confidence < 1", name="ck_autolabel_look_confidence"),
        sa.PrimaryKeyConstraint("id", name="pk_autolabel_look"),
        sa.UniqueConstraint("number", name="uq_autolabel_look_number"),
    )
    op.create_table(
        "auto_label",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("image_id", ROW_ID, nullable=False),
        sa.Column("look_id", sa.Integer(), nullable=False),
        sa.Column("class_name", sa.Text(), nullable=False),
        sa.Column("probability", sa.Float(), nullable=False),
        sa.Column("threshold", sa.Float(), nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.Column("withdrawn_at", sa.DateTime(), nullable=True),
        sa.CheckConstraint("probability >= threshold", name="ck_auto_label_threshold"),
        sa.ForeignKeyConstraint(["image_id"], ["image.id"], name="fk_auto_label_image_id"),
        sa.ForeignKeyConstraint(["look_id"], ["autolabel_look.id"], name="fk_auto_label_look_id"),
        sa.PrimaryKeyConstraint("id", name="pk_auto_label"),
    )
    op.create_index("ix_auto_label_image_id", "auto_label", ["image_id"])
    op.create_index("ix_auto_label_look_id", "auto_label", ["look_id"])
    op.create_index(
        "uq_auto_label_active_image",
        "auto_label",
        ["image_id"],
        unique=True,
        sqlite_where=sa.text("withdrawn_at IS NULL"),
        postgresql_where=sa.text("withdrawn_at IS NULL"),
    )


def downgrade() -> None:
    op.drop_table("auto_label")
    op.drop_table("autolabel_look")
    op.execute("UPDATE query SET reason = 'random' WHERE reason = 'audit'")
    _set_reasons(OLD)


def _set_reasons(condition: str) -> None:
    if op.get_bind().dialect.name != "sqlite":
        op.drop_constraint(op.f("ck_query_reason"), "query", type_="check")
        op.create_check_constraint(op.f("ck_query_reason"), "query", condition)
        return
    # SQLite changes a constraint by copying the table. Tasks and annotations refer to it by name, and `upgrade` in
    # alloop/store/migrate.py switches foreign keys off meanwhile and checks them afterwards.
    op.create_table(
        "query_copy",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(length=80), nullable=False),
        sa.Column("round_id", sa.Integer(), nullable=False),
        sa.Column("image_id", sa.Integer(), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.String(length=16), nullable=False),
        sa.Column("strategy", sa.String(length=64), nullable=False),
        sa.Column("rank", sa.Integer(), nullable=False),
        sa.Column("score", sa.Float(), nullable=True),
        sa.Column("probability", sa.Float(), nullable=True),
        sa.Column("predicted", sa.Text(), nullable=True),
        sa.Column("confidence", sa.Float(), nullable=True),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.Column("settled_at", sa.DateTime(), nullable=True),
        sa.Column("suspect", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("draw_number", sa.Integer(), nullable=True),
        sa.Column("draw_pool", sa.Integer(), nullable=True),
        sa.CheckConstraint(condition, name=op.f("ck_query_reason")),
        sa.CheckConstraint(
            "status IN ('open', 'answered', 'skipped', 'empty', 'unknown', 'withdrawn')", name=op.f("ck_query_status")
        ),
        sa.CheckConstraint(
            "probability IS NULL OR (probability > 0 AND probability <= 1)", name=op.f("ck_query_probability")
        ),
        sa.ForeignKeyConstraint(["image_id"], ["image.id"], name=op.f("fk_query_image_id")),
        sa.ForeignKeyConstraint(["round_id"], ["round.id"], name=op.f("fk_query_round_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_query")),
        sa.UniqueConstraint("key", name=op.f("uq_query_key")),
        sa.UniqueConstraint("round_id", "image_id", name=op.f("uq_query_round_id_image_id")),
        sa.UniqueConstraint("round_id", "rank", name=op.f("uq_query_round_id_rank")),
    )
    op.execute("INSERT INTO query_copy SELECT * FROM query")  # the columns have the same order
    op.drop_table("query")
    op.rename_table("query_copy", "query")
    op.create_index(op.f("ix_query_image_id"), "query", ["image_id"], unique=False)
    op.create_index(op.f("ix_query_round_id"), "query", ["round_id"], unique=False)
    op.create_index("uq_query_open_image", "query", ["image_id"], unique=True, sqlite_where=sa.text(IS_OPEN))
