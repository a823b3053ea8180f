"""`headwater demo`: a learning platform's database, liberated while it is being written to.

    database    makes the database (seeded)
    writer      the application: a process of its own that goes on writing
    pipeline/   the configuration, contracts and vocabulary, as a user would write them

`cli/demo.py` runs it all and proves that every sink equals its source.
"""
