"""Real servers for the tests, from the wheels of the `test` extra; see `fixtures.py` for what a test asks for."""
