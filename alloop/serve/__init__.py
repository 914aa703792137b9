"""Live pages of a workspace (`alloop serve`). Needs the extra `serve`."""
