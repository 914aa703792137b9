"""Mark queries whose image looks like nothing else in the pool.

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # SQLite adds a constant in place; copying the table would have to spell out its partial index.
    with op.batch_alter_table("query", recreate="never") as query:
        query.add_column(sa.Column("suspect", sa.Boolean(), nullable=False, server_default=sa.false()))


def downgrade() -> None:
    with op.batch_alter_table("query", recreate="never") as query:
        query.drop_column("suspect")
