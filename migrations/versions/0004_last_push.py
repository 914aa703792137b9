"""Store the last push, to notice a restored database or a copied workspace; allow the outcome 'outdated'.

Revision ID: 0004
Revises: 0003
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

NEW = "outcome IN ('label', 'skip', 'empty', 'outdated', 'deleted')"
OLD = "outcome IN ('label', 'skip', 'empty', 'deleted')"


def upgrade() -> None:
    with op.batch_alter_table("sync_state", recreate="never") as sync_state:
        sync_state.add_column(sa.Column("last_push", sa.String(16), nullable=True))
        sync_state.add_column(sa.Column("next_push", sa.String(16), nullable=True))
        sync_state.add_column(sa.Column("n_orphaned", sa.Integer(), nullable=True))
        sync_state.add_column(sa.Column("n_foreign", sa.Integer(), nullable=True))
    _set_outcomes(NEW)


def downgrade() -> None:
    op.execute("UPDATE annotation SET outcome = 'empty' WHERE outcome = 'outdated'")
    _set_outcomes(OLD)
    with op.batch_alter_table("sync_state", recreate="never") as sync_state:
        for name in ("n_foreign", "n_orphaned", "next_push", "last_push"):
            sync_state.drop_column(name)


def _set_outcomes(condition: str) -> None:
    if op.get_bind().dialect.name != "sqlite":
        op.drop_constraint(op.f("ck_annotation_outcome"), "annotation", type_="check")
        op.create_check_constraint(op.f("ck_annotation_outcome"), "annotation", condition)
        return
    # SQLite changes a constraint by copying the table. Batch mode writes constraints in no fixed order.
    op.create_table(
        "annotation_copy",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("image_id", sa.Integer(), nullable=False),
        sa.Column("query_id", sa.Integer(), nullable=True),
        sa.Column("source", sa.String(length=32), nullable=False),
        sa.Column("external_id", sa.String(length=200), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("annotator", sa.String(length=200), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.Column("value", sa.Text(), nullable=True),
        sa.Column("lead_time", sa.Float(), nullable=True),
        sa.Column("answered_at", sa.DateTime(), nullable=False),
        sa.Column("recorded_at", sa.DateTime(), nullable=False),
        sa.CheckConstraint("outcome <> 'label' OR value IS NOT NULL", name=op.f("ck_annotation_label_has_value")),
        sa.CheckConstraint(condition, name=op.f("ck_annotation_outcome")),
        sa.CheckConstraint("version >= 1", name=op.f("ck_annotation_version")),
        sa.ForeignKeyConstraint(["image_id"], ["image.id"], name=op.f("fk_annotation_image_id")),
        sa.ForeignKeyConstraint(["query_id"], ["query.id"], name=op.f("fk_annotation_query_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_annotation")),
        sa.UniqueConstraint("source", "external_id", "version", name=op.f("uq_annotation_source_external_id_version")),
    )
    op.execute("INSERT INTO annotation_copy SELECT * FROM annotation")
    op.drop_table("annotation")
    op.rename_table("annotation_copy", "annotation")
    op.create_index(op.f("ix_annotation_image_id"), "annotation", ["image_id"], unique=False)
    op.create_index(op.f("ix_annotation_query_id"), "annotation", ["query_id"], unique=False)
