"""Store the number of bits that hold the largest value of an image with more than 8 bits a channel.

Revision ID: 0005
Revises: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("image", recreate="never") as image:
        image.add_column(sa.Column("depth", sa.Integer(), nullable=True))
    # Gray images with more than 8 bits were read as 16 bits until now. An impossible file time makes `pool add` read
    # them again and record their depth. Color images with more than 8 bits cannot be told from others here.
    op.execute("UPDATE image SET depth = 16 WHERE mode = 'I' OR mode LIKE 'I;16%'")
    op.execute(
        "UPDATE image_location SET mtime_ns = -1 WHERE image_id IN (SELECT id FROM image WHERE depth IS NOT NULL)"
    )


def downgrade() -> None:
    with op.batch_alter_table("image", recreate="never") as image:
        image.drop_column("depth")
