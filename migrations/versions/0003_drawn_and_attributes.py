"""Say of a drawn query how many were drawn before it and from how many; attributes of images.

Revision ID: 0003
Revises: 0002
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # SQLite adds columns that may be null in place; copying the table would have to spell out its partial index.
    with op.batch_alter_table("query", recreate="never") as query:
        query.add_column(sa.Column("draw_number", sa.Integer(), nullable=True))
        query.add_column(sa.Column("draw_pool", sa.Integer(), nullable=True))
    op.create_table(
        "image_attribute",
        sa.Column("image_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["image_id"], ["image.id"], name="fk_image_attribute_image_id"),
        sa.PrimaryKeyConstraint("image_id", "name", name="pk_image_attribute"),
    )


def downgrade() -> None:
    op.drop_table("image_attribute")
    with op.batch_alter_table("query", recreate="never") as query:
        query.drop_column("draw_pool")
        query.drop_column("draw_number")
