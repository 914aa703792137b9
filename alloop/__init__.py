"""alloop: from a folder of unlabeled images to a classifier a team can trust."""

__version__ = "0.1.0"
