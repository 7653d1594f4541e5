"""Parts of study.py."""
