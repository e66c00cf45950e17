"""The Django migrations, one for each release with new numbered migrations."""
