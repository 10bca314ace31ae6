"""Looking into the dream: episodes to hold it against, figures, a verdict, a report, pictures, and a page to steer it.

For the command line alone, like the benchmark; nothing that trains imports it.
"""
