"""The documentation site: what it adds to MkDocs, and the pages that are made from the code."""
