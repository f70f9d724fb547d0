"""Mails that come back, as plain data: what kind of mail it is, and what it says about whom. Pure: bytes in, data out.

No bytes make it raise, and no mail makes it work for long: everything that is read has a bound.
"""
