"""A scriptable, misbehaving MTA: takes messages over, plays a seeded fate for each, and knows the exact truth.

For demos, tests, and the tests of whoever integrates with the services. It never sends anything to anybody.
"""
