"""Store the setting that near copies were grouped with.

Revision ID: 0006
Revises: 0005
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("workspace", recreate="never") as workspace:
        workspace.add_column(sa.Column("near_copies", sa.String(16), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("workspace", recreate="never") as workspace:
        workspace.drop_column("near_copies")
