"""Create the first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# SQLite gives row ids to INTEGER columns only.
ROW_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "event",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("at", sa.DateTime(), nullable=False),
        sa.Column("actor", sa.String(length=200), nullable=False),
        sa.Column("kind", sa.String(length=64), nullable=False),
        sa.Column("round_number", sa.Integer(), nullable=True),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_event")),
    )
    op.create_index(op.f("ix_event_at"), "event", ["at"], unique=False)

    op.create_table(
        "image",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("split", sa.String(length=16), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("height", sa.Integer(), nullable=False),
        sa.Column("format", sa.String(length=16), nullable=False),
        sa.Column("mode", sa.String(length=16), nullable=False),
        sa.Column("phash", sa.String(length=128), nullable=False),
        sa.Column("added_at", sa.DateTime(), nullable=False),
        sa.CheckConstraint("split IN ('train', 'holdout', 'excluded')", name=op.f("ck_image_split")),
        sa.CheckConstraint("length(sha256) = 64", name=op.f("ck_image_sha256")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_image")),
        sa.UniqueConstraint("sha256", name=op.f("uq_image_sha256")),
    )
    op.create_index(op.f("ix_image_split"), "image", ["split"], unique=False)

    op.create_table(
        "lease",
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("holder", sa.String(length=200), nullable=False),
        sa.Column("acquired_at", sa.DateTime(), nullable=False),
        sa.Column("expires_at", sa.DateTime(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_lease")),
    )
    op.create_table(
        "round",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("config", sa.JSON(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("scores_path", sa.Text(), nullable=True),
        sa.Column("scores_sha256", sa.String(length=64), nullable=True),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.Column("closed_at", sa.DateTime(), nullable=True),
        sa.Column("closed_because", sa.Text(), nullable=True),
        sa.CheckConstraint(
            "state IN ('created', 'trained', 'scored', 'selected', 'pushed', 'closed')", name=op.f("ck_round_state")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_round")),
        sa.UniqueConstraint("number", name=op.f("uq_round_number")),
    )
    # One round at a time; spelled out because not every database can reflect an index over an expression.
    op.execute("CREATE UNIQUE INDEX uq_round_unclosed ON round ((state <> 'closed')) WHERE state <> 'closed'")

    op.create_table(
        "sync_state",
        sa.Column("source", sa.String(length=32), nullable=False),
        sa.Column("project_ref", sa.String(length=200), nullable=False),
        sa.Column("identity", sa.String(length=64), nullable=False),
        sa.Column("mark", sa.Text(), nullable=True),
        sa.Column("pulled_at", sa.DateTime(), nullable=True),
        sa.PrimaryKeyConstraint("source", name=op.f("pk_sync_state")),
    )
    op.create_table(
        "workspace",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("uuid", sa.String(length=32), nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_workspace_single_row")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_workspace")),
    )
    op.create_table(
        "image_location",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("image_id", ROW_ID, nullable=True),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("mtime_ns", sa.BigInteger(), nullable=False),
        sa.Column("seen_at", sa.DateTime(), nullable=False),
        sa.CheckConstraint(
            "status <> 'unreadable' OR reason IS NOT NULL", name=op.f("ck_image_location_unreadable_says_why")
        ),
        sa.CheckConstraint(
            "status = 'unreadable' OR image_id IS NOT NULL", name=op.f("ck_image_location_readable_is_image")
        ),
        sa.CheckConstraint("status IN ('ok', 'unreadable', 'missing')", name=op.f("ck_image_location_status")),
        sa.ForeignKeyConstraint(["image_id"], ["image.id"], name=op.f("fk_image_location_image_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_image_location")),
        sa.UniqueConstraint("path", name=op.f("uq_image_location_path")),
    )
    op.create_index(op.f("ix_image_location_image_id"), "image_location", ["image_id"], unique=False)
    op.create_index(op.f("ix_image_location_status"), "image_location", ["status"], unique=False)

    op.create_table(
        "label",
        sa.Column("image_id", ROW_ID, autoincrement=False, nullable=False),
        sa.Column("class_name", sa.Text(), nullable=False),
        sa.Column("agreement", sa.Float(), nullable=False),
        sa.Column("n_annotations", sa.Integer(), nullable=False),
        sa.Column("derived_at", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(["image_id"], ["image.id"], name=op.f("fk_label_image_id")),
        sa.PrimaryKeyConstraint("image_id", name=op.f("pk_label")),
    )
    op.create_table(
        "model_version",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("round_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("classes", sa.JSON(), nullable=False),
        sa.Column("head_classes", sa.JSON(), nullable=False),
        sa.Column("label_digest", sa.String(length=64), nullable=False),
        sa.Column("n_labels", sa.Integer(), nullable=False),
        sa.Column("n_holdout", sa.Integer(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("config", sa.JSON(), nullable=False),
        sa.Column("library_versions", sa.JSON(), nullable=False),
        sa.Column("calibration", sa.JSON(), nullable=False),
        sa.Column("history", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(["round_id"], ["round.id"], name=op.f("fk_model_version_round_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_model_version")),
        sa.UniqueConstraint("name", name=op.f("uq_model_version_name")),
        sa.UniqueConstraint("round_id", name=op.f("uq_model_version_round_id")),
    )
    op.create_table(
        "near_duplicate",
        sa.Column("image_id", ROW_ID, autoincrement=False, nullable=False),
        sa.Column("group_id", ROW_ID, nullable=False),
        sa.Column("distance", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["group_id"], ["image.id"], name=op.f("fk_near_duplicate_group_id")),
        sa.ForeignKeyConstraint(["image_id"], ["image.id"], name=op.f("fk_near_duplicate_image_id")),
        sa.PrimaryKeyConstraint("image_id", name=op.f("pk_near_duplicate")),
    )
    op.create_index(op.f("ix_near_duplicate_group_id"), "near_duplicate", ["group_id"], unique=False)

    op.create_table(
        "query",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("key", sa.String(length=80), nullable=False),
        sa.Column("round_id", sa.Integer(), nullable=False),
        sa.Column("image_id", ROW_ID, nullable=False),
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
        sa.CheckConstraint(
            "reason IN ('acquired', 'random', 'holdout', 'seed', 'relabel')", name=op.f("ck_query_reason")
        ),
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
    op.create_index(op.f("ix_query_image_id"), "query", ["image_id"], unique=False)
    op.create_index(op.f("ix_query_round_id"), "query", ["round_id"], unique=False)
    op.create_index(
        "uq_query_open_image",
        "query",
        ["image_id"],
        unique=True,
        sqlite_where=sa.text("status = 'open'"),
        postgresql_where=sa.text("status = 'open'"),
    )

    op.create_table(
        "annotation",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("image_id", ROW_ID, nullable=False),
        sa.Column("query_id", ROW_ID, nullable=True),
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
        sa.CheckConstraint("outcome IN ('label', 'skip', 'empty', 'deleted')", name=op.f("ck_annotation_outcome")),
        sa.CheckConstraint("version >= 1", name=op.f("ck_annotation_version")),
        sa.ForeignKeyConstraint(["image_id"], ["image.id"], name=op.f("fk_annotation_image_id")),
        sa.ForeignKeyConstraint(["query_id"], ["query.id"], name=op.f("fk_annotation_query_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_annotation")),
        sa.UniqueConstraint("source", "external_id", "version", name=op.f("uq_annotation_source_external_id_version")),
    )
    op.create_index(op.f("ix_annotation_image_id"), "annotation", ["image_id"], unique=False)
    op.create_index(op.f("ix_annotation_query_id"), "annotation", ["query_id"], unique=False)

    op.create_table(
        "metric",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("model_version_id", sa.Integer(), nullable=False),
        sa.Column("split", sa.String(length=16), nullable=False),
        sa.Column("name", sa.String(length=32), nullable=False),
        sa.Column("value", sa.Float(), nullable=True),
        sa.Column("low", sa.Float(), nullable=True),
        sa.Column("high", sa.Float(), nullable=True),
        sa.Column("n", sa.Integer(), nullable=False),
        sa.Column("method", sa.String(length=32), nullable=False),
        sa.Column("computed_at", sa.DateTime(), nullable=False),
        sa.ForeignKeyConstraint(["model_version_id"], ["model_version.id"], name=op.f("fk_metric_model_version_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_metric")),
        sa.UniqueConstraint("model_version_id", "split", "name", name=op.f("uq_metric_model_version_id_split_name")),
    )
    op.create_table(
        "task",
        sa.Column("id", ROW_ID, nullable=False),
        sa.Column("query_id", ROW_ID, nullable=False),
        sa.Column("source", sa.String(length=32), nullable=False),
        sa.Column("project_ref", sa.String(length=200), nullable=False),
        sa.Column("external_id", sa.String(length=200), nullable=False),
        sa.Column("pushed_at", sa.DateTime(), nullable=False),
        sa.Column("gone_at", sa.DateTime(), nullable=True),
        sa.ForeignKeyConstraint(["query_id"], ["query.id"], name=op.f("fk_task_query_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_task")),
        sa.UniqueConstraint("query_id", name=op.f("uq_task_query_id")),
        sa.UniqueConstraint(
            "source", "project_ref", "external_id", name=op.f("uq_task_source_project_ref_external_id")
        ),
    )


def downgrade() -> None:
    raise NotImplementedError("there is nothing before the first schema; restore a backup instead")
