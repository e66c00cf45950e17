"""Fuzzing: targets that take bytes, inputs made from a corpus, and a judge that looks at each input's outcome and time.

``python -m tests.fuzz`` runs it by hand, and ``tests/fuzz/test_*.py`` in the suite. A target turns bytes into whatever it tests, so
one corpus of files serves the tests, hypothesis and atheris.
"""
