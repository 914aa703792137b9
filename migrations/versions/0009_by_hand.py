"""Allow the reason 'manual' of queries and the split 'junk' of images; store who marked an image as junk.

Revision ID: 0009
Revises: 0008
"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

ROW_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
REASONS = "'acquired', 'random', 'holdout', 'seed', 'relabel', 'audit'"
SPLITS = "'train', 'holdout', 'excluded'"
IS_OPEN = "status = 'open'"


def upgrade() -> None:
    _set_splits(f"split IN ({SPLITS}, 'junk')")
    _set_reasons(f"reason IN ({REASONS}, 'manual')")
    op.create_table(
        "junk",
        sa.Column("image_id", ROW_ID, autoincrement=False, nullable=False),
        sa.Column("marked_at", sa.DateTime(), nullable=False),
        sa.Column("marked_by", sa.String(200), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["image_id"], ["image.id"], name="fk_junk_image_id"),
        sa.PrimaryKeyConstraint("image_id", name="pk_junk"),
    )


def downgrade() -> None:
    op.drop_table("junk")
    # Without a mark, an image is only kept away from training by the split of near copies of the holdout.
    op.execute("UPDATE image SET split = 'excluded' WHERE split = 'junk'")
    op.execute("UPDATE query SET reason = 'relabel' WHERE reason = 'manual'")
    _set_reasons(f"reason IN ({REASONS})")
    _set_splits(f"split IN ({SPLITS})")


# SQLite changes a constraint by copying the table. Other tables refer to it by name, and `upgrade` in
# alloop/store/migrate.py switches foreign keys off meanwhile and checks them afterwards.


def _set_splits(condition: str) -> None:
    if op.get_bind().dialect.name != "sqlite":
        op.drop_constraint(op.f("ck_image_split"), "image", type_="check")
        op.create_check_constraint(op.f("ck_image_split"), "image", condition)
        return
    op.create_table(
        "image_copy",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("split", sa.String(length=16), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("height", sa.Integer(), nullable=False),
        sa.Column("format", sa.String(length=16), nullable=False),
        sa.Column("mode", sa.String(length=16), nullable=False),
        sa.Column("phash", sa.String(length=128), nullable=False),
        sa.Column("added_at", sa.DateTime(), nullable=False),
        sa.Column("depth", sa.Integer(), nullable=True),
        sa.CheckConstraint(condition, name=op.f("ck_image_split")),
        sa.CheckConstraint("length(sha256) = 64", name=op.f("ck_image_sha256")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_image")),
        sa.UniqueConstraint("sha256", name=op.f("uq_image_sha256")),
    )
    op.execute("INSERT INTO image_copy SELECT * FROM image")  # the columns have the same order
    op.drop_table("image")
    op.rename_table("image_copy", "image")
    op.create_index(op.f("ix_image_split"), "image", ["split"], unique=False)


def _set_reasons(condition: str) -> None:
    if op.get_bind().dialect.name != "sqlite":
        op.drop_constraint(op.f("ck_query_reason"), "query", type_="check")
        op.create_check_constraint(op.f("ck_query_reason"), "query", condition)
        return
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
