"""Tasks: texts, what is asked of them, and which of them teach, choose and judge."""
